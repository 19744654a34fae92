"""Ingest writes each conversation once, tokenised, on one side of the split; and counts every record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages.ingest_runs import Ingested, ingest

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.artifacts.rows import Parent, row_key
from kd_runtime.models.templates import Template
from kd_runtime.planning.tokenizers import tokenizer_digest

SKY = {"question": "What colour is the sky?", "answer": "The sky is blue."}


def jsonl(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def questions(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}."} for n in range(count)]


def one(tmp_path: Path, models: Path, record: dict[str, Any], **dataset: Any) -> Ingested:
    return ingest(tmp_path, models, {"d.jsonl": jsonl(record)}, at="d.jsonl", **dataset)


def test_a_row_holds_what_the_template_renders_with_the_response_scored(tmp_path: Path, tiny_models: Path) -> None:
    made = one(tmp_path, tiny_models, SKY)
    (row,) = made.rows
    template = Template(tiny_models / "student")
    asked = [{"role": "user", "content": SKY["question"]}]
    assert row.messages == asked and row.response == SKY["answer"] and row.references == [SKY["answer"]]
    prompt = template.prompt(asked)
    assert row.prompt_tokens == len(prompt.ids)
    assert row.input_ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
    assert not row.scored[: row.prompt_tokens].any() and row.scored[row.prompt_tokens]
    assert row.key == row_key(tokenizer_digest(tiny_models / "student"), asked, row.input_ids, row.scored)
    assert row.parents == (Parent("d.jsonl:1", 0),) and row.source == "d.jsonl:1"


def test_without_a_response_a_row_is_the_prompt_and_nothing_is_scored(tmp_path: Path, tiny_models: Path) -> None:
    (row,) = one(tmp_path, tiny_models, SKY, fields={"prompt": "question"}).rows
    prompt = Template(tiny_models / "student").prompt(row.messages)
    assert row.response is None and row.references is None
    assert row.input_ids.tolist() == prompt.ids.tolist() and not row.scored.any()
    assert row.prompt_tokens == len(row.input_ids)


def test_a_system_column_becomes_a_system_turn_where_it_says_something(tmp_path: Path, tiny_models: Path) -> None:
    records = jsonl({**SKY, "s": "Be brief."}, {**SKY, "s": ""}, {**SKY, "s": None}, SKY)
    fields = {"prompt": "question", "response": "answer", "system": "s"}
    made = ingest(tmp_path, tiny_models, {"d.jsonl": records}, at="d.jsonl", fields=fields)
    assert [[m["role"] for m in row.messages] for row in made.rows] == [["system", "user"], ["user"]]
    assert len(made.rows[1].parents) == 3


def test_messages_end_with_the_response_and_earlier_answers_are_scored_only_with_all(
    tmp_path: Path, tiny_models: Path
) -> None:
    turns = [
        ("system", ""),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", SKY["question"]),
        ("assistant", SKY["answer"]),
    ]
    record = {"turns": [{"role": role, "content": content, "name": None} for role, content in turns]}
    scored = {}
    for loss_on in ("LastTurn", "All"):
        made = one(tmp_path / loss_on, tiny_models, record, fields={"messages": "turns"}, lossOn=loss_on)
        (row,) = made.rows
        assert [m["role"] for m in row.messages] == ["user", "assistant", "user"] and row.response == SKY["answer"]
        scored[loss_on] = int(row.scored.sum())
    assert scored["All"] > scored["LastTurn"] > 0


def test_messages_may_end_with_the_question(tmp_path: Path, tiny_models: Path) -> None:
    record = {"turns": [{"role": "user", "content": "Hi"}], "answer": "Hello."}
    (asked,) = one(tmp_path / "a", tiny_models, record, fields={"messages": "turns"}).rows
    (told,) = one(tmp_path / "b", tiny_models, record, fields={"messages": "turns", "response": "answer"}).rows
    assert asked.response is None and told.response == "Hello."


@pytest.mark.parametrize("reasoning", ["Keep", "Strip"])
def test_reasoning_is_kept_or_stripped_and_never_part_of_the_reference(
    tmp_path: Path, tiny_models: Path, reasoning: str
) -> None:
    record = {"question": "2+2?", "answer": "<think>\nTwo and two\n</think>\n\n4"}
    (row,) = one(tmp_path, tiny_models, record, reasoning=reasoning).rows
    assert row.response == (record["answer"] if reasoning == "Keep" else "4")
    assert row.references == ["4"]


def test_equal_records_are_one_row_with_all_their_parents(tmp_path: Path, tiny_models: Path) -> None:
    records = [*questions(300), questions(1)[0], SKY, SKY, SKY]
    made = ingest(tmp_path, tiny_models, {"d.jsonl": jsonl(*records)}, at="d.jsonl")
    parents = {row.source: [parent.row for parent in row.parents] for row in made.rows if len(row.parents) > 1}
    assert parents == {
        "d.jsonl:1": ["d.jsonl:1", "d.jsonl:301"],
        "d.jsonl:302": ["d.jsonl:302", "d.jsonl:303", "d.jsonl:304"],
    }
    assert made.counts["in"] == made.counts["done"] == 304 and made.counts["out"] == 301 == len(made.rows)


def test_counts_add_up(tmp_path: Path, tiny_models: Path) -> None:
    body = jsonl(*questions(40), {"question": "", "answer": "x"}) + b"{broken\n"
    made = ingest(tmp_path, tiny_models, {"d.jsonl": body}, at="d.jsonl")
    counts = made.counts
    assert counts["in"] == 42 == counts["done"] + counts["rejected"] and counts["rejected"] == 2 == len(made.rejects)
    assert counts["out"] == 40 == counts["train"] + counts["heldOut"]
    assert counts["tokens"] == sum(len(row.input_ids) for row in made.rows)
    assert made.manifest.extra["rejects"] == {"Empty": 1, "BadJSON": 1}


def test_a_prompt_is_on_one_side_whatever_its_answer_and_the_share_is_about_right(
    tmp_path: Path, tiny_models: Path
) -> None:
    records = [{**record, "answer": answer} for record in questions(200) for answer in ("Yes.", "No.")]
    made = ingest(
        tmp_path, tiny_models, {"d.jsonl": jsonl(*records)}, at="d.jsonl", holdout={"fraction": 0.25, "seed": 3}
    )
    sides: dict[str, set[str]] = {}
    for row in made.rows:
        sides.setdefault(row.messages[-1]["content"], set()).add(row.split)
    assert all(len(side) == 1 for side in sides.values())
    assert 60 <= made.counts["heldOut"] <= 140
    other = ingest(
        tmp_path / "b", tiny_models, {"d.jsonl": jsonl(*records)}, at="d.jsonl", holdout={"fraction": 0.25, "seed": 4}
    )
    assert [row.split for row in other.rows] != [row.split for row in made.rows]


def test_the_same_data_give_the_same_bytes(tmp_path: Path, tiny_models: Path) -> None:
    records = jsonl(*questions(300), *questions(3))
    made = [ingest(tmp_path / name, tiny_models, {"d.jsonl": records}, at="d.jsonl") for name in "ab"]
    assert made[0].manifest.content_digest == made[1].manifest.content_digest
    assert made[0].manifest.writer != made[1].manifest.writer


def test_more_rejected_than_allowed_ends_with_counts_and_the_first_rejects(tmp_path: Path, tiny_models: Path) -> None:
    body = jsonl(*questions(8)) + b"{broken\n" + jsonl({"question": "x"})
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, tiny_models, {"d.jsonl": body}, at="d.jsonl", maxRejectedRatio=0.1)
    text = str(caught.value)
    assert text.startswith(
        "spec.dataset.maxRejectedRatio: 2 of 10 rows are rejected (20.0%, 10.0% allowed; BadJSON 1, WrongField 1)"
    )
    assert "d.jsonl:9 BadJSON" in text and "d.jsonl:10 WrongField: column 'answer' (fields.response) is missing" in text
    assert (
        ingest(tmp_path / "b", tiny_models, {"d.jsonl": body}, at="d.jsonl", maxRejectedRatio=0.2).counts["done"] == 8
    )


@pytest.mark.parametrize("body", [b"\n\n", b'{"question": ""}\n'])
def test_no_usable_row_at_all_is_an_error(tmp_path: Path, tiny_models: Path, body: bytes) -> None:
    with pytest.raises(DataError, match=r"holds no row|1 of 1 rows are rejected"):
        ingest(tmp_path, tiny_models, {"d.jsonl": body}, at="d.jsonl")


def test_progress_is_told_in_bytes_up_to_the_end(tmp_path: Path, tiny_models: Path) -> None:
    body = jsonl(*questions(600))
    made = ingest(tmp_path, tiny_models, {"d.jsonl": body}, at="d.jsonl")
    assert len(made.said) == 3 and made.said[-1] == (len(body), len(body), "bytes")
    assert [said[0] for said in made.said] == sorted(said[0] for said in made.said)


def test_a_template_of_the_users_renders_the_rows(tmp_path: Path, tiny_models: Path) -> None:
    jinja = tmp_path / "plain.jinja"
    jinja.write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    made = one(tmp_path, tiny_models, SKY, template=f"file://{jinja}")
    plain = one(tmp_path / "b", tiny_models, SKY)
    assert (
        made.rows[0].input_ids.tolist()
        == Template(tiny_models / "student", jinja.read_text()).prompt(made.rows[0].messages).ids.tolist()
        + made.rows[0].input_ids[made.rows[0].prompt_tokens :].tolist()
    )
    assert not np.array_equal(made.rows[0].input_ids, plain.rows[0].input_ids)


def test_reasoning_that_the_template_would_lose_is_not_said_to_be_kept(tmp_path: Path, tiny_models: Path) -> None:
    jinja = tmp_path / "last.jinja"
    jinja.write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content.split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    record = {**SKY, "answer": f"<think>Rayleigh.</think>{SKY['answer']}"}
    with pytest.raises(SettingsError, match=r"spec\.dataset\.reasoning: Keep, but spec\.dataset\.template .*Strip"):
        one(tmp_path, tiny_models, record, template=f"file://{jinja}")
    (row,) = one(tmp_path / "b", tiny_models, record, template=f"file://{jinja}", reasoning="Strip").rows
    assert row.response == SKY["answer"]


def test_where_a_stage_evaluates_some_row_must_be_held_out(tmp_path: Path, tiny_models: Path) -> None:
    files, few = {"d.jsonl": jsonl(*questions(8))}, {"fraction": 0.001}
    assert ingest(tmp_path / "trained", tiny_models, files, at="d.jsonl", holdout=few).counts["heldOut"] == 0
    message = (
        "0.001 of 8 rows holds none out, and stage exam evaluates on held-out rows; raise it, give more rows, or leave"
    )
    with pytest.raises(DataError, match=f"spec.dataset.holdout.fraction: {message}"):
        ingest(tmp_path / "examined", tiny_models, files, at="d.jsonl", holdout=few, evaluates=True)
    assert not list((tmp_path / "examined").glob("store/artifacts/*"))
    some = ingest(tmp_path / "some", tiny_models, files, at="d.jsonl", holdout={"fraction": 0.5}, evaluates=True)
    assert some.counts["heldOut"] > 0
