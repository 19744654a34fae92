"""Who may ask a teacher: every path but /health wants the API key, whatever the engine."""

from __future__ import annotations

import hmac

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


def wrong_teacher(expected: str | None, own: str | None) -> JSONResponse | None:
    """409 where the client means another teacher than this one; None where it does not, or either does not say."""
    if expected is None or own is None or expected == own:
        return None
    message = f"this teacher is {own[:12]}, and {expected[:12]} is asked for"
    return JSONResponse(error_body(message, "WrongTeacher", 409), 409)
