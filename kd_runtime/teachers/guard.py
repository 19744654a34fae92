"""Who may ask a teacher, and which one: every path but /health wants the API key, whatever the engine."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health"})


class Guard:
    """ASGI middleware: 401 for a request without ``Authorization: Bearer KEY``.

    vLLM's own guard covers /v1 and a few other prefixes only; it leaves /tokenize, /metrics and plugins' routes open.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self._app(scope, receive, send)
            return
        message = "the API key is missing or wrong; send Authorization: Bearer KEY"
        await JSONResponse(error_body(message, "AuthenticationError", 401), 401)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        return hmac.compare_digest(given.encode(), self._expected)


def error_body(message: str, kind: str, code: int) -> dict[str, object]:
    """An error as OpenAI's protocol puts it."""
    return {"error": {"message": message, "type": kind, "code": code}}


@dataclass(frozen=True)
class Identity:
    """Which teacher a server is."""

    teacher: str | None = None
    """Digest of its files, as the plan has it; None where no plan started it."""
    tokenizer: str | None = None
    """Digest of its tokenizer; None where it has none of the forms that have one."""

    def said(self) -> dict[str, str | None]:
        """The answer to ``GET`` on the score route."""
        return {"tokenizer": self.tokenizer}

    def refusal(self, teacher: str | None, tokenizer: str | None) -> JSONResponse | None:
        """409 where the client means another teacher than this one, or counts its ids by another tokenizer.

        A client that says neither is answered. Nothing tells a foreign id from an own one, so a tokenizer that is not known
        is no better than another; a teacher that no plan started is whoever it is.
        """
        if teacher is not None and self.teacher is not None and teacher != self.teacher:
            return _conflict(f"this teacher is {self.teacher[:12]}, and {teacher[:12]} is asked for", "WrongTeacher")
        if tokenizer is not None and tokenizer != self.tokenizer:
            own = self.tokenizer[:12] if self.tokenizer is not None else "not known"
            return _conflict(
                f"this teacher's tokenizer is {own}, and the ids are of {tokenizer[:12]}", "WrongTokenizer"
            )
        return None


def _conflict(message: str, kind: str) -> JSONResponse:
    return JSONResponse(error_body(message, kind, 409), 409)
