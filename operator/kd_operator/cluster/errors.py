"""How a request to the API server can fail; each is answered by taking the job's key again later."""

from __future__ import annotations

import re

VARYING = re.compile(
    r", used: .*?(?=, limited: |$)"  # of a quota
    r"|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|\b[0-9a-f]{16}(?:[0-9a-f]{16})?\b"  # traces
    r"|\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(?:Z|[+-]\d\d:?\d\d)?",
    re.IGNORECASE,
)
"""What is another each time where the API server, a quota or a webhook says the same: counts, ids, moments."""


class ApiError(Exception):
    """The API server did not do what it was asked, or nobody knows whether it did."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        self.status = status
        """HTTP status; 0 where no answer came."""
        self.reason = reason
        """One word of Kubernetes: AlreadyExists, Conflict, Expired, …"""
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""
        super().__init__(f"{status} {reason}: {message}")

    @property
    def steady(self) -> str:
        """The message without what varies, so that the same thing is said in the same words each time."""
        return VARYING.sub("", self.message)


class NotFound(ApiError):
    """404: the object, or its whole kind, is not there."""


class Conflict(ApiError):
    """409: a name is taken, or the object has changed since it was read."""


class Gone(ApiError):
    """410: a list was paged through too slowly."""


class TooManyRequests(ApiError):
    """429: ``retry_after`` says when to come back."""


class ServerError(ApiError):
    """5xx: it may have been done all the same."""


class Unreachable(ApiError):
    """No answer in time, or no connection: it may have been done all the same."""


class Denied(ApiError):
    """401 or 403: not allowed by the operator's rights, a quota, or admission."""


class Refused(ApiError):
    """Any other 4xx: the object is not valid."""


def error_of(status: int, reason: str, message: str, retry_after: float | None = None) -> ApiError:
    """The error for an HTTP status of 400 or more."""
    return _class_of(status)(status, reason, message, retry_after)


def _class_of(status: int) -> type[ApiError]:
    if status >= 500:
        return ServerError
    return _CLASSES.get(status, Refused)


_CLASSES: dict[int, type[ApiError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: TooManyRequests,
}
