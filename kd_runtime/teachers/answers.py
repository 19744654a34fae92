"""What a teacher's HTTP answers mean: an answer, a row that it refuses, something passing, or a wrong setting."""

from __future__ import annotations

import datetime
import email.utils
import json
from dataclasses import dataclass
from typing import Any

import httpx

from kd_runtime.api.failures import DeniedError, SettingsError
from kd_runtime.artifacts.rejects import not_utf8

TOO_LONG_MARKS = ("context length", "context window", "maximum model length", "max_model_len", "too long", "too large")
QUOTA_MARKS = ("insufficient_quota", "billing_hard_limit")
PASSING_CODES = frozenset({408, 425, 429})
EXCERPT = 200


class Refused(Exception):
    """The teacher will not answer this request, now or later: the row is rejected.

    ``reason`` is one CamelCase word for the list of rejected rows, ``detail`` what the teacher said.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Passing(Exception):
    """Something that may be otherwise at the next try."""

    def __init__(self, message: str, *, answered: bool, busy: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.answered = answered
        """The teacher did get the request: several of these, while others succeed, are the request's own fault."""
        self.busy = busy
        """The teacher wants fewer requests (429)."""
        self.retry_after = retry_after
        """Seconds."""

    @property
    def fault(self) -> bool:
        """Whether the request itself may be at fault."""
        return self.answered and not self.busy


class Garbled(Passing):
    """A success whose body is not what the protocol says."""

    def __init__(self, message: str) -> None:
        super().__init__(message, answered=True)


@dataclass(frozen=True)
class Answer:
    """A teacher's answer to one conversation."""

    text: str
    reasoning: str | None
    finish_reason: str
    """stop | length"""
    prompt_tokens: int
    completion_tokens: int

    @property
    def not_utf8(self) -> str | None:
        """Why it is no text, if so: JSON can say what UTF-8 cannot."""
        for name, said in (("the answer", self.text), ("the answer's reasoning", self.reasoning or "")):
            if wrong := not_utf8(said):
                return f"{name} {wrong}"
        return None


def check_status(response: httpx.Response) -> None:
    """Return if the response is a success.

    Raises:
        Passing: 408, 425, 429, 5xx (but 501).
        Refused: 400, 413, 422: this row.
        DeniedError: 401, 402, 403, or a quota that is used up.
        SettingsError: anything else: the base URL, the model or the route is wrong, or another teacher answers (409).
    """
    code = response.status_code
    if code == 200:
        return
    said = _message(response)
    where = f"{response.request.method} {_shown(response.request.url)}: {code}"
    if code in (401, 402, 403) or (code == 429 and any(mark in response.text for mark in QUOTA_MARKS)):
        raise DeniedError(f"{where}, {said}; check the teacher's API key, its rights and its quota")
    if code in PASSING_CODES or (code >= 500 and code != 501):
        wait = retry_after_seconds(response.headers.get("retry-after"))
        raise Passing(f"{where}, {said}", answered=code != 503, busy=code == 429, retry_after=wait)
    if code == 409:
        raise SettingsError(
            f"{where}, {said}; another model or tokenizer is there than the plan names: point the teacher at its own"
        )
    if code in (400, 413, 422):
        long = code == 413 or any(mark in said for mark in TOO_LONG_MARKS)
        raise Refused("TooLong" if long else "Refused", said)
    if 300 <= code < 400:
        raise SettingsError(
            f"{where}, a redirect to {response.headers.get('location')}; give that address as the base URL"
        )
    raise SettingsError(f"{where}, {said}; check the teacher's base URL, protocol and model")


def read_chat(response: httpx.Response) -> Answer:
    """The answer in the body of a chat completion.

    Raises:
        Garbled: the body is not a chat completion.
        Refused: the model declined (content filter), called a tool, said nothing, or said what is no text.
    """
    try:
        body = response.json()
        choice = body["choices"][0]
        message = choice["message"]
        finish = choice.get("finish_reason") or "stop"
        usage = body.get("usage") or {}
        answer = Answer(
            text=_text(message.get("content")),
            reasoning=_text(message.get("reasoning_content") or message.get("reasoning")) or None,
            finish_reason=str(finish),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Garbled(
            f"the body is no chat completion ({type(error).__name__}): {response.text[:EXCERPT]!r}"
        ) from error
    if answer.finish_reason == "content_filter" or message.get("refusal"):
        raise Refused(
            "Filtered", _excerpt(str(message.get("refusal") or "the teacher's content filter ended the answer"))
        )
    if answer.finish_reason not in ("stop", "length"):
        raise Refused("NoAnswer", f"the answer ended with finish_reason {answer.finish_reason!r}")
    if not answer.text.strip():
        raise Refused("Empty", f"the answer has no text (finish_reason {answer.finish_reason!r})")
    if wrong := answer.not_utf8:
        raise Refused("NotUTF8", wrong)
    return answer


def retry_after_seconds(value: str | None, now: datetime.datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or a date), or None."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - (now or datetime.datetime.now(datetime.UTC))).total_seconds())


def _text(value: Any) -> str:
    """Content as text: a string, or a list of parts of which the text ones count."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(part["text"] for part in value if part.get("type") == "text")
    if not isinstance(value, str):
        raise TypeError("content is neither text nor parts")
    return value


def _message(response: httpx.Response) -> str:
    """What an error body says, on one line."""
    text = response.text
    try:
        body = response.json()
        error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
        text = error.get("message", json.dumps(error)) if isinstance(error, dict) else str(error)
    except ValueError:
        pass
    return _excerpt(" ".join(text.split())) or "no message"


def _excerpt(text: str) -> str:
    """The beginning, with a question mark for what UTF-8 cannot write: messages go to files and terminals."""
    return text[:EXCERPT].encode(errors="replace").decode()


def _shown(url: httpx.URL) -> str:
    """An address without credentials or query, for messages."""
    return str(url.copy_with(userinfo=b"", query=None))
