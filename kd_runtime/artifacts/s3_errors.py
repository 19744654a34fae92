"""What boto3 and S3 servers say when something fails, turned into exit classes and one clear sentence each."""

from __future__ import annotations

from typing import Any

from kd_runtime.api.failures import DeniedError, KDError, SettingsError, StorageError
from kd_runtime.artifacts.store import Missing

PRECONDITION = 412
_PASSING = frozenset({"ConditionalRequestConflict", "OperationAborted", "NoSuchUpload"})
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


class Refused(Exception):
    """A conditional write found an object there; ``attempts`` counts the tries that boto3 made."""

    def __init__(self, error: BaseException):
        super().__init__(str(error))
        self.attempts = 1 + int(_response(error).get("ResponseMetadata", {}).get("RetryAttempts", 0))


def refused(error: BaseException) -> bool:
    """True for an unmet ``If-None-Match``."""
    return _status(error) == PRECONDITION or _code(error) == "PreconditionFailed"


def retryable(error: BaseException) -> bool:
    """True for what boto3 does not try again by itself, and another try may mend."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    broken = (
        HTTPError,  # as it is where the body of a refusal breaks off, which botocore reads unguarded
        exceptions.ReadTimeoutError,
        exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError,
        exceptions.ConnectionClosedError,
        exceptions.FlexibleChecksumError,
    )
    return isinstance(error, broken) or _code(error) in _PASSING


def translated(error: Exception, uri: str, name: str, endpoint: str | None) -> KDError:
    """The KDError that says what happened to ``name`` of the store at ``uri``."""
    from botocore import exceptions

    what, bucket = f"{uri}{name}", uri.removeprefix("s3://").partition("/")[0]
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return DeniedError(
            f"{what}: no AWS credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role"
        )
    if isinstance(error, exceptions.ClientError):
        return _of_answer(error, what, bucket)
    if isinstance(error, exceptions.ParamValidationError):
        return SettingsError(f"s3://{bucket}: is not a bucket's name ({error}); correct the URI")
    return StorageError(
        f"{what}: {endpoint or 'the S3 endpoint'} does not answer ({error}); check endpoint and network"
    )


def _of_answer(error: Any, what: str, bucket: str) -> KDError:
    code, status = _code(error), _status(error)
    said = f"{code}: {_response(error).get('Error', {}).get('Message', '')}".rstrip(": ")
    if code == "NoSuchBucket":
        return SettingsError(f"s3://{bucket}: there is no such bucket; create it, or correct the URI")
    if code in _ABSENT:
        return Missing(f"{what}: is not there; plan again to see what is left")
    if status in (401, 403):
        return DeniedError(
            f"{what}: access to bucket {bucket} is denied ({said}); check the credentials and their rights"
        )
    if status == 501 or code == "NotImplemented":
        return StorageError(f"{what}: this server lacks what is needed ({said}); use one with conditional writes")
    return StorageError(f"{what}: bucket {bucket} answered {status} ({said}); run again, or see the server's log")


def _response(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
