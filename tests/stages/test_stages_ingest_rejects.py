"""A record that cannot be used is named by file and line, with its reason; the others go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages.ingest_runs import ingest

GOOD = {"question": "What colour is the sky?", "answer": "The sky is blue."}

BAD: dict[str, tuple[bytes, str, str]] = {
    "cut off": (b'{"question": "x", "answer"', "BadJSON", "Expecting ':' delimiter"),
    "two objects": (b'{"question": "x"} {"question": "y"}', "BadJSON", "Extra data"),
    "a list": (b'["x", "y"]', "BadJSON", "is a list, not an object"),
    "NaN": (b'{"question": NaN, "answer": "x"}', "BadJSON", "NaN is not JSON"),
    "raw control character": (b'{"question": "a\x01b", "answer": "x"}', "BadJSON", "Invalid control character"),
    "nested too deep": (b"[" * 200_000, "BadJSON", "nested too deep"),
    "a huge number": (b'{"question": ' + b"9" * 5000 + b"}", "BadJSON", "Exceeds the limit"),
    "Latin-1": ('{"question": "Käse", "answer": "x"}'.encode("latin-1"), "NotUTF8", "byte 0xe4 at 15 is not UTF-8"),
    "lone surrogate": (b'{"question": "a\\ud800b", "answer": "x"}', "NotUTF8", "'question' (fields.prompt)"),
    "escaped control character": (
        b'{"question": "a\\u0000b", "answer": "x"}',
        "WrongField",
        "control character U+0000",
    ),
    "no prompt": (b'{"answer": "x"}', "WrongField", "column 'question' (fields.prompt) is missing; the row has answer"),
    "no response": (b'{"question": "x"}', "WrongField", "column 'answer' (fields.response) is missing"),
    "a number": (
        b'{"question": 3, "answer": "x"}',
        "WrongField",
        "column 'question' (fields.prompt) is a number, not text",
    ),
    "an object": (b'{"question": "x", "answer": {}}', "WrongField", "column 'answer' (fields.response) is an object"),
    "empty prompt": (b'{"question": "  \\n", "answer": "x"}', "Empty", "column 'question' (fields.prompt) is empty"),
    "null response": (b'{"question": "x", "answer": null}', "Empty", "column 'answer' (fields.response) is null"),
    "reasoning alone": (b'{"question": "x", "answer": "<think>hm"}', "Empty", "is reasoning alone"),
    "too long": (json.dumps({**GOOD, "answer": "la " * 400}).encode(), "TooLong", "dataset.maxTokens is 128"),
    "a megabyte": (json.dumps({**GOOD, "answer": "ab " * 350_000}).encode(), "TooLong", "dataset.maxTokens is 128"),
    "17 megabytes": (json.dumps({**GOOD, "answer": "a" * (17 << 20)}).encode(), "TooLong", "the line exceeds"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_rejected_by_file_and_line_and_its_neighbours_stay(
    tmp_path: Path, tiny_models: Path, kind: str
) -> None:
    line, reason, detail = BAD[kind]
    good = json.dumps(GOOD).encode()
    made = ingest(tmp_path, tiny_models, {"d.jsonl": b"\n".join([good, line, good, b""])}, at="d.jsonl")
    assert [(r.row, r.sample, r.reason, r.source) for r in made.rejects] == [("d.jsonl:2", 0, reason, "d.jsonl:2")]
    assert detail in made.rejects[0].detail and len(made.rejects[0].detail) <= 200
    assert [parent.row for parent in made.rows[0].parents] == ["d.jsonl:1", "d.jsonl:3"]


MESSAGES: dict[str, tuple[Any, str, str]] = {
    "text": ("hello", "WrongField", "column 'm' (fields.messages) is text, not a list of messages"),
    "an object": ({"role": "user"}, "WrongField", "is an object, not a list"),
    "none": ([], "Empty", "column 'm' (fields.messages) is empty"),
    "another role": ([{"role": "human", "content": "x"}], "WrongField", "[0].role is 'human', none of system"),
    "another key": ([{"role": "user", "content": "x", "tool_calls": [1]}], "WrongField", "[0] has 'tool_calls'"),
    "no content": ([{"role": "user"}], "Empty", "[0].content is null"),
    "parts": ([{"role": "user", "content": [{"text": "x"}]}], "WrongField", "[0].content is a list, not text"),
    "an answer alone": ([{"role": "assistant", "content": "x"}], "WrongField", "has no user turn before the answer"),
    "a string in it": (["x"], "WrongField", "[0] is str, not an object with role and content"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_malformed_messages_name_the_message(tmp_path: Path, tiny_models: Path, kind: str) -> None:
    value, reason, detail = MESSAGES[kind]
    good = {"m": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    body = "".join(json.dumps(record) + "\n" for record in (good, {"m": value})).encode()
    made = ingest(tmp_path, tiny_models, {"d.jsonl": body}, at="d.jsonl", fields={"messages": "m"})
    assert [(r.source, r.reason) for r in made.rejects] == [("d.jsonl:2", reason)]
    assert detail in made.rejects[0].detail


def test_two_answers_to_one_conversation_are_refused(tmp_path: Path, tiny_models: Path) -> None:
    told = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    body = "".join(json.dumps({"m": m, "answer": "Hey."}) + "\n" for m in (told[:1], told)).encode()
    made = ingest(
        tmp_path, tiny_models, {"d.jsonl": body}, at="d.jsonl", fields={"messages": "m", "response": "answer"}
    )
    assert made.reasons == {"d.jsonl:2": "WrongField"} and len(made.rows) == 1


def test_rejects_stand_in_the_order_of_the_file(tmp_path: Path, tiny_models: Path) -> None:
    long = json.dumps({**GOOD, "answer": "la " * 400}).encode()
    lines = [long, b"{", json.dumps(GOOD).encode(), b"[]", long]
    made = ingest(tmp_path, tiny_models, {"d.jsonl": b"\n".join(lines)}, at="d.jsonl")
    assert [r.source for r in made.rejects] == ["d.jsonl:1", "d.jsonl:2", "d.jsonl:4", "d.jsonl:5"]
