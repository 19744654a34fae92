"""From a dataset's record to a conversation: which field holds what, and what makes a row unusable."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd_runtime.api.dataset import DatasetFields, Reasoning
from kd_runtime.artifacts.rejects import not_utf8
from kd_runtime.models.reasoning import without_reasoning
from kd_runtime.stages.dataset_records import Reason, RejectedRow

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""Control characters but tab, line feed, vertical tab, form feed and carriage return."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """What is asked, and the dataset's own answer where it has one."""

    messages: list[dict[str, str]]
    """Every turn before the response."""
    response: str | None
    references: list[str] | None
    """The response without its reasoning: what an answer is compared with."""

    @property
    def whole(self) -> list[dict[str, str]]:
        """With the response as the last turn."""
        if self.response is None:
            return self.messages
        return [*self.messages, {"role": "assistant", "content": self.response}]

    @property
    def characters(self) -> int:
        """Of all turns."""
        return sum(len(message["content"]) for message in self.whole)


def columns_of(fields: DatasetFields) -> tuple[str, ...]:
    """The columns that are mapped, each once."""
    named = (fields.prompt, fields.messages, fields.system, fields.response)
    return tuple(dict.fromkeys(name for name in named if name is not None))


def conversation_of(record: Mapping[str, Any], fields: DatasetFields, reasoning: Reasoning) -> Conversation:
    """The conversation in ``record``.

    Raises:
        RejectedRow: a field is missing, empty, of another type, not text in UTF-8, or holds control characters.
    """
    messages = _from_messages(record, fields) if fields.messages is not None else _from_prompt(record, fields)
    response = _text(record, "response", fields.response) if fields.response is not None else None
    if messages and messages[-1]["role"] == "assistant":
        if response is not None:
            raise RejectedRow(
                Reason.WrongField,
                f"{_named('messages', fields.messages)} ends with an answer, and {_named('response', fields.response)} has another",
            )
        response = messages.pop()["content"]
    return _finished(messages, response, reasoning, fields)


def _finished(
    messages: list[dict[str, str]], response: str | None, reasoning: Reasoning, fields: DatasetFields
) -> Conversation:
    if not any(message["role"] == "user" for message in messages):
        raise RejectedRow(
            Reason.WrongField, f"{_named('messages', fields.messages)} has no user turn before the answer"
        )
    if reasoning is Reasoning.Strip:
        messages = [_stripped(message) for message in messages]
    if response is None:
        return Conversation(messages, None, None)
    answer = without_reasoning(response)
    if not answer.strip():
        name = _named("response", fields.response or fields.messages)
        raise RejectedRow(Reason.Empty, f"{name} is reasoning alone, without an answer")
    return Conversation(messages, answer if reasoning is Reasoning.Strip else response, [answer])


def _stripped(message: dict[str, str]) -> dict[str, str]:
    if message["role"] != "assistant":
        return message
    return {"role": "assistant", "content": without_reasoning(message["content"])}


def _from_prompt(record: Mapping[str, Any], fields: DatasetFields) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": _text(record, "prompt", fields.prompt)}]
    system = record.get(fields.system) if fields.system is not None else None
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    return [{"role": "system", "content": _checked(system, _named("system", fields.system))}, *messages]


def _from_messages(record: Mapping[str, Any], fields: DatasetFields) -> list[dict[str, str]]:
    name = _named("messages", fields.messages)
    value = _present(record, "messages", fields.messages)
    if isinstance(value, str):  # a cell of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RejectedRow(Reason.WrongField, f"{name} is text, not a list of messages") from None
    if not isinstance(value, list):
        raise RejectedRow(Reason.WrongField, f"{name} is {_kind(value)}, not a list of messages")
    if not value:
        raise RejectedRow(Reason.Empty, f"{name} is empty")
    return [_message(message, f"{name}[{number}]") for number, message in enumerate(value) if not _no_system(message)]


def _no_system(message: Any) -> bool:
    """True for a system turn that says nothing: many datasets have one in each row."""
    return (
        isinstance(message, dict) and message.get("role") == "system" and not str(message.get("content") or "").strip()
    )


def _message(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RejectedRow(Reason.WrongField, f"{name} is {_kind(value)}, not an object with role and content")
    more = sorted(key for key, entry in value.items() if key not in ("role", "content") and entry is not None)
    if more:
        raise RejectedRow(Reason.WrongField, f"{name} has {more[0]!r}; only role and content are read")
    if value.get("role") not in ROLES:
        raise RejectedRow(Reason.WrongField, f"{name}.role is {value.get('role')!r}, none of {', '.join(ROLES)}")
    return {"role": value["role"], "content": _checked(value.get("content"), f"{name}.content")}


def _text(record: Mapping[str, Any], field: str, column: str | None) -> str:
    return _checked(_present(record, field, column), _named(field, column))


def _present(record: Mapping[str, Any], field: str, column: str | None) -> Any:
    if column is None or column not in record:
        there = ", ".join(sorted(record)[:8]) or "no field"
        raise RejectedRow(Reason.WrongField, f"{_named(field, column)} is missing; the row has {there}")
    return record[column]


def _checked(value: Any, name: str) -> str:
    if value is None:
        raise RejectedRow(Reason.Empty, f"{name} is null")
    if not isinstance(value, str):
        raise RejectedRow(Reason.WrongField, f"{name} is {_kind(value)}, not text")
    if not value.strip():
        raise RejectedRow(Reason.Empty, f"{name} is empty")
    if wrong := not_utf8(value):
        raise RejectedRow(Reason.NotUTF8, f"{name} {wrong}")
    if found := _CONTROL.search(value):
        raise RejectedRow(
            Reason.WrongField, f"{name} has control character U+{ord(found.group()):04X} at character {found.start()}"
        )
    return value


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _named(field: str, column: str | None) -> str:
    return f"column {column!r} (fields.{field})"
