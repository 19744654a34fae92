"""Chat templates: what a model is given, and which tokens a student learns from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import tokenizer_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_runtime.api.dataset import LossOn
from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.models.templates import Rendered, Template

QUESTION = {"role": "user", "content": "What colour is the sky?"}
ANSWER = {"role": "assistant", "content": "The sky is blue."}
THREAD = [
    {"role": "system", "content": "Be brief."},
    QUESTION,
    {"role": "assistant", "content": "It is blue.", "reasoning_content": "Rayleigh scattering."},
    {"role": "user", "content": "And at night?"},
    {"role": "assistant", "content": "It is black.", "reasoning_content": "No sun."},
]

WITHOUT_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
"""Of a model whose earlier reasoning is not to be seen: written so that no reasoning is."""


@pytest.fixture(scope="module")
def chatml(tiny_models: Path) -> Template:
    return Template(tiny_models / "teacher")


@pytest.fixture(scope="module")
def family(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Template of a model family, by its name."""
    made: dict[str, Template] = {}

    def template(name: str) -> Template:
        if name not in made:
            made[name] = Template(tokenizer_with(name, tiny_models / "teacher", tmp_path_factory.mktemp(name)))
        return made[name]

    return template


def decoded(template: Template, ids: Any) -> str:
    return str(template._tokenizer.decode(ids, skip_special_tokens=False))


def scored_runs(template: Template, rendered: Rendered) -> list[str]:
    """The text of each run of neighbouring scored tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], rendered.scored.astype(int), [0]])))
    return [decoded(template, rendered.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_a_prompt_ends_where_the_assistant_begins_and_scores_nothing(chatml: Template) -> None:
    rendered = chatml.prompt([QUESTION])
    assert rendered.text == "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n"
    assert decoded(chatml, rendered.ids) == rendered.text
    assert rendered.ids.dtype == np.uint32
    assert rendered.prompt_tokens == len(rendered.ids)
    assert not rendered.scored.any()


def test_the_answer_and_its_end_marker_are_scored_but_not_the_newline_after_it(chatml: Template) -> None:
    rendered = chatml.conversation([QUESTION, ANSWER], LossOn.Response)
    assert scored_runs(chatml, rendered) == ["The sky is blue.<|im_end|>"]
    assert rendered.ids[: rendered.prompt_tokens].tolist() == chatml.prompt([QUESTION]).ids.tolist()
    assert not rendered.scored[-1]


@pytest.mark.parametrize("loss_on", [LossOn.Response, LossOn.All])
def test_an_answer_that_was_cut_off_has_no_end_to_learn(chatml: Template, loss_on: LossOn) -> None:
    rendered = chatml.conversation(THREAD, loss_on, cut_off=True)
    assert scored_runs(chatml, rendered)[-1] == "It is black."
    assert rendered.text == chatml.conversation(THREAD, loss_on).text


@pytest.mark.parametrize(
    ("says", "learned"),
    [
        (
            "<think>two and two, at some length</think>The answer is four and it was cut",
            "The answer is four and it was cut",
        ),
        ("the end", "the end"),
        ("im_end", "im_end"),
        ("four, so  \n", "four, so"),
        ("<think>two and two</think>", ""),
    ],
)
def test_where_an_answer_was_cut_off_is_found_in_what_the_template_makes_of_it(
    tiny_models: Path, says: str, learned: str
) -> None:
    template = Template(tiny_models / "teacher", WITHOUT_THOUGHT)
    rendered = template.conversation([QUESTION, {"role": "assistant", "content": says}], LossOn.Response, cut_off=True)
    assert "".join(scored_runs(template, rendered)) == learned


@pytest.mark.parametrize("loss_on", [LossOn.Response, LossOn.LastTurn])
def test_only_the_last_turn_is_scored_unless_all_are_asked_for(chatml: Template, loss_on: LossOn) -> None:
    rendered = chatml.conversation(THREAD, loss_on)
    assert scored_runs(chatml, rendered) == ["It is black.<|im_end|>"]


def test_all_scores_every_assistant_turn(chatml: Template) -> None:
    rendered = chatml.conversation(THREAD, LossOn.All)
    assert scored_runs(chatml, rendered) == ["It is blue.<|im_end|>", "It is black.<|im_end|>"]
    assert decoded(chatml, rendered.ids[rendered.prompt_tokens :]) == "It is black.<|im_end|>\n"


@pytest.mark.parametrize(
    ("name", "earlier", "last"),
    [
        ("llama3", "It is blue.<|eot_id|>", "It is black.<|eot_id|>"),
        ("gemma3", "It is blue.<end_of_turn>", "It is black.<end_of_turn>"),
        ("qwen2_5", "It is blue.<|im_end|>", "It is black.<|im_end|>"),
        ("qwen3", "It is blue.<|im_end|>", "<think>\nNo sun.\n</think>\n\nIt is black.<|im_end|>"),
        ("qwen3_instruct_2507", "It is blue.<|im_end|>", "It is black.<|im_end|>"),
        ("qwen3_5_think", "It is blue.<|im_end|>", "No sun.\n</think>\n\nIt is black.<|im_end|>"),
    ],
)
def test_turns_are_found_in_every_familys_template(family: Any, name: str, earlier: str, last: str) -> None:
    template = family(name)
    assert scored_runs(template, template.conversation(THREAD, LossOn.All)) == [earlier, last]
    assert scored_runs(template, template.conversation(THREAD, LossOn.Response)) == [last]


def test_a_template_says_whether_it_renders_reasoning(family: Any, chatml: Template) -> None:
    assert family("qwen3").renders_reasoning
    assert not family("llama3").renders_reasoning
    assert not chatml.renders_reasoning


def test_a_template_says_whether_it_renders_reasoning_within_an_answer(
    family: Any, chatml: Template, tiny_models: Path
) -> None:
    assert all(t.renders_content_with_reasoning for t in (chatml, family("qwen3"), family("qwen3_5_think")))
    assert not Template(tiny_models / "teacher", WITHOUT_THOUGHT).renders_content_with_reasoning
    assert not family("deepseekv3").renders_content_with_reasoning


def test_a_template_that_asks_for_the_date_renders_the_same_every_day(family: Any, tiny_models: Path) -> None:
    assert "Today Date: 26 Jul 2024\n" in family("llama3_2").prompt([QUESTION]).text
    asks = "{% macro now() %}{{ strftime_now('%Y-%m-%d %H:%M') }}{% endmacro %}{{ now() + messages[0].content }}"
    assert Template(tiny_models / "teacher", asks).prompt([QUESTION]).text == f"2024-07-26 00:00{QUESTION['content']}"


def test_a_template_that_renders_an_answer_behind_another_prompt_is_refused(family: Any) -> None:
    template = family("deepseek_r1_distill")
    assert template.prompt([QUESTION]).text.endswith("<think>\n")
    with pytest.raises(SettingsError, match=r"ends a prompt in '<think>.*spec\.dataset\.template"):
        template.conversation([QUESTION, ANSWER], LossOn.Response)


def test_a_conversation_that_the_template_refuses_is_bad_data(family: Any) -> None:
    with pytest.raises(DataError, match="roles must alternate"):
        family("gemma3").conversation([QUESTION, QUESTION, ANSWER], LossOn.Response)


def test_a_bad_conversation_stands_alone_in_a_batch(family: Any) -> None:
    template = family("gemma3")
    good, bad, also_good = template.conversations(
        [[QUESTION, ANSWER], [QUESTION, QUESTION, ANSWER], THREAD], LossOn.Response
    )
    assert isinstance(bad, DataError)
    for rendered, messages in ((good, [QUESTION, ANSWER]), (also_good, THREAD)):
        alone = template.conversation(messages, LossOn.Response)
        assert rendered.ids.tolist() == alone.ids.tolist()
        assert rendered.scored.tolist() == alone.scored.tolist()
        assert (rendered.text, rendered.prompt_tokens) == (alone.text, alone.prompt_tokens)


def test_a_batch_of_bad_conversations_is_all_errors(chatml: Template) -> None:
    assert [type(result) for result in chatml.prompts([[], [{"role": "robot", "content": "x"}]])] == [
        DataError,
        DataError,
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "are empty"),
        ([{"role": "robot", "content": "x"}, ANSWER], r"messages\[0\]\.role: 'robot'"),
        ([QUESTION, {"role": "assistant", "content": None}], r"messages\[1\]\.content: is NoneType"),
        ([QUESTION], "the last has role 'user'"),
        ([ANSWER], "the first has role 'assistant'"),
    ],
)
def test_malformed_messages_are_named(chatml: Template, messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chatml.conversation(messages, LossOn.Response)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("{% for m in messages %}", "endfor"),
        ("{{ messages[0].content + sytem_prompt }}", "sytem_prompt"),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
def test_a_broken_template_is_a_bad_setting(tiny_models: Path, override: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=rf"spec\.dataset\.template fails on a single user message .*{reason}"):
        Template(tiny_models / "teacher", override)


def test_a_template_that_needs_a_token_that_the_tokenizer_lacks_is_a_bad_setting(tiny_models: Path) -> None:
    override = "{% set text = bos_token + messages[0].content %}{{ text }}"
    with pytest.raises(SettingsError, match="bos_token"):
        Template(tiny_models / "teacher", override)


def test_an_override_replaces_the_tokenizers_template(tiny_models: Path, chatml: Template) -> None:
    turns = "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    override = turns + "{{ 'a:' if add_generation_prompt }}"
    template = Template(tiny_models / "teacher", override)
    rendered = template.conversation([QUESTION, ANSWER], LossOn.Response)
    assert rendered.text == "u:What colour is the sky?<|im_end|>a:The sky is blue.<|im_end|>"
    assert scored_runs(template, rendered) == ["The sky is blue.<|im_end|>"]
    assert template.text == override
    assert template.digest() != chatml.digest()


def test_the_digest_is_that_of_the_template_in_the_folder(tiny_models: Path, chatml: Template) -> None:
    from kd_runtime.planning.tokenizers import template_digest

    assert chatml.digest() == template_digest(tiny_models / "teacher")


def test_a_tokenizer_without_a_template_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_models / "teacher", folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match=r"has no chat template; name one in spec\.dataset\.template"):
        Template(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no tokenizer that transformers loads"):
        Template(tmp_path)


def test_a_tokenizer_that_trims_its_offsets_scores_the_same(
    tiny_models: Path, tmp_path: Path, chatml: Template
) -> None:
    folder = tmp_path / "trimming"
    shutil.copytree(tiny_models / "teacher", folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    path.write_text(json.dumps(data))
    trimming = Template(folder)
    for answer in ("The sky is blue.", "  spaces first", "one\n\ntwo  \n three"):
        messages = [QUESTION, {"role": "assistant", "content": answer}]
        a, b = chatml.conversation(messages, LossOn.All), trimming.conversation(messages, LossOn.All)
        assert a.ids.tolist() == b.ids.tolist()
        assert a.scored.tolist() == b.scored.tolist()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXT, first=TEXT, again=TEXT, second=TEXT)
def test_scored_tokens_are_the_answers_whatever_they_say(
    chatml: Template, question: str, first: str, again: str, second: str
) -> None:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": first},
        {"role": "user", "content": again},
        {"role": "assistant", "content": second},
    ]
    rendered = chatml.conversation(messages, LossOn.All)
    assert not rendered.scored[0]
    assert decoded(chatml, rendered.ids) == rendered.text
    # A token that holds the end of the prompt and the start of an answer (two newlines, say) belongs to neither.
    got = scored_runs(chatml, rendered)
    for run, answer in zip(got, (first, second), strict=True):
        assert f"{answer}<|im_end|>".endswith(run)
        assert len(run) >= len(answer.lstrip()) + len("<|im_end|>")
