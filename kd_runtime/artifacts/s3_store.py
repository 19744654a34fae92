"""``s3://``: a store in a bucket, through boto3 and its usual credential chain."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kd_runtime.artifacts.s3_errors import Refused, refused, retryable, translated
from kd_runtime.artifacts.s3_transfer import MultipartUpload, RangedDownload
from kd_runtime.artifacts.store import (
    AlreadyExists,
    Missing,
    ObjectInfo,
    Progress,
    body_sha256,
    checked_name,
    local_errors,
)
from kd_runtime.outbound.addresses import guard_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DIGEST_KEY = "kd-sha256"
"""User metadata with the whole object's sha256: a multipart object has no such checksum of its own."""
MULTIPART_BYTES = 64 << 20
PART_BYTES = 16 << 20
PARALLEL = 8
ATTEMPTS = 8
SILENCE_SECONDS = 60.0
"""A server that sends nothing for so long in the middle of an answer is asked again."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
T = TypeVar("T")


class S3Store:
    """Objects below ``s3://bucket/prefix``. The client is made at first use, so that opening a store asks nobody."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        attempts: int = ATTEMPTS,
        part_bytes: int = PART_BYTES,
        multipart_bytes: int = MULTIPART_BYTES,
        silence_seconds: float = SILENCE_SECONDS,
    ):
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self.prefix}"
        self._endpoint, self._region, self._attempts = endpoint, region, attempts
        self._part_bytes, self._multipart_bytes, self._silence = part_bytes, multipart_bytes, silence_seconds
        self._client: S3Client | None = None
        self._guard = threading.Lock()
        self._bucket_seen = False

    def put(self, name: str, body: bytes | Path, *, if_absent: bool = False, sha256: str | None = None) -> ObjectInfo:
        """One PUT with its SHA-256, or parts in parallel where the body is large; ``If-None-Match: *`` where asked.

        A look beforehand saves large bodies their way, and is what a server without conditional writes is left with.
        """
        if if_absent and self.exists(name):
            raise AlreadyExists(f"{self.uri}{name}: is there already")
        digest = sha256 or body_sha256(body)
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        if isinstance(body, Path) and size > self._multipart_bytes:
            etag = self._put_large(name, body, digest, if_absent)
        else:
            etag = self._put(name, digest, lambda: self._put_small(name, body, digest, if_absent))
        return ObjectInfo(name, size, etag, digest, time.time())

    def get(self, name: str) -> bytes:
        """The whole object."""
        return self.read_range(name, 0, None)

    def read_range(self, name: str, start: int, length: int | None = None) -> bytes:
        """Bytes by an HTTP range; a body that breaks off is asked for again."""
        if length == 0:
            return b""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(name)}
        if start or length is not None:
            arguments["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        return self._call(name, lambda: self._s3.get_object(**arguments)["Body"].read())

    def download(self, name: str, to: Path, *, size: int | None = None, progress: Progress | None = None) -> None:
        """Ranges in parallel into ``to.part``; beside it a list of those that are there, for who goes on after a kill."""
        info = self.stat(name)
        if info is None:
            raise Missing(f"{self.uri}{name}: is not there; plan again to see what is left")
        job = RangedDownload(self._s3, self.bucket, self._key(name), info, to, self._part_bytes, progress)
        with local_errors(to):
            job.run(PARALLEL, lambda work: self._call(name, work))

    def stat(self, name: str) -> ObjectInfo | None:
        """A HEAD; a bucket that is missing is an error, not an absent object."""
        try:
            head = self._call(
                name, lambda: self._s3.head_object(Bucket=self.bucket, Key=self._key(name), ChecksumMode="ENABLED")
            )
        except Missing:
            self._check_bucket()
            return None
        return ObjectInfo(
            name, head["ContentLength"], head["ETag"].strip('"'), _digest(head), head["LastModified"].timestamp()
        )

    def exists(self, name: str) -> bool:
        """True where the object is there."""
        return self.stat(name) is not None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Page by page. S3 sorts by the bytes of the keys."""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        while True:
            page = self._call(prefix, lambda: self._s3.list_objects_v2(**arguments))
            for entry in page.get("Contents", []):
                name = entry["Key"][len(self.prefix) :]
                if name and not name.endswith("/"):  # a folder's marker is no object of ours
                    modified = entry["LastModified"].timestamp()
                    yield ObjectInfo(name, entry["Size"], entry["ETag"].strip('"'), None, modified)
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, name: str) -> None:
        """Remove the object."""
        self._call(name, lambda: self._s3.delete_object(Bucket=self.bucket, Key=self._key(name)))

    def refuses_overwriting(self) -> bool:
        """Whether a second ``If-None-Match: *`` is refused."""
        name = f"probes/{secrets.token_hex(8)}"

        def write(body: bytes) -> None:
            self._call(name, lambda: self._put_small(name, body, body_sha256(body), True))

        try:
            write(b"first")
            write(b"second")
        except Refused:
            return True
        finally:
            self.delete(name)
        return False

    def unfinished(self, before: float) -> Iterator[ObjectInfo]:
        """Multipart uploads that were neither completed nor aborted; sizes are of the parts that arrived."""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix}
        while True:
            page = self._call("", lambda: self._s3.list_multipart_uploads(**arguments))
            for upload in page.get("Uploads", []):
                name, begun = upload["Key"][len(self.prefix) :], upload["Initiated"].timestamp()
                if begun < before:
                    yield ObjectInfo(name, self._parts_size(name, upload["UploadId"]), upload["UploadId"], None, begun)
            if not page.get("IsTruncated"):
                return
            arguments.update(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"])

    def discard(self, write: ObjectInfo) -> None:
        """Abort the multipart upload."""
        place: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(write.name)}

        def abort() -> None:
            with contextlib.suppress(self._s3.exceptions.NoSuchUpload):
                self._s3.abort_multipart_upload(**place, UploadId=write.etag)

        self._call(write.name, abort)

    def _parts_size(self, name: str, upload: str) -> int:
        """Bytes of the first 1,000 parts; 0 where the upload is gone."""
        place: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(name)}

        def size() -> int:
            with contextlib.suppress(self._s3.exceptions.NoSuchUpload):
                page = self._s3.list_parts(**place, UploadId=upload)
                return sum(int(part["Size"]) for part in page.get("Parts", []))
            return 0

        return self._call(name, size)

    def _put(self, name: str, digest: str, write: Callable[[], str]) -> str:
        """The ETag of what ``write`` wrote; a refusal after an earlier try is looked into: that try may have arrived."""
        tried = 0

        def once() -> str:
            nonlocal tried
            tried += 1
            return write()

        try:
            return self._call(name, once)
        except Refused as error:
            found = self.stat(name)
            if (tried > 1 or error.attempts > 1) and found and found.sha256 == digest:
                return found.etag
            raise AlreadyExists(f"{self.uri}{name}: is there already") from error

    def _put_large(self, name: str, path: Path, digest: str, if_absent: bool) -> str:
        place = (self.bucket, self._key(name))
        upload = MultipartUpload(self._s3, *place, path, {DIGEST_KEY: digest}, self._part_bytes, if_absent)
        try:
            return self._put(name, digest, lambda: upload.run(PARALLEL))
        except BaseException:
            with contextlib.suppress(*_boto_error()):
                upload.abort()
            raise

    def _put_small(self, name: str, body: bytes | Path, digest: str, if_absent: bool) -> str:
        arguments: dict[str, Any] = {
            "Bucket": self.bucket,
            "Key": self._key(name),
            "Metadata": {DIGEST_KEY: digest},
            "ChecksumSHA256": base64.b64encode(bytes.fromhex(digest)).decode(),
        }
        if if_absent:
            arguments["IfNoneMatch"] = "*"
        if isinstance(body, bytes):
            return self._s3.put_object(Body=body, **arguments)["ETag"].strip('"')
        with body.open("rb") as file:
            return self._s3.put_object(Body=file, **arguments)["ETag"].strip('"')

    def _key(self, name: str) -> str:
        return self.prefix + checked_name(name)

    @property
    def _s3(self) -> S3Client:
        with self._guard:
            if self._client is None:
                self._client = _client(self._endpoint, self._region, self._attempts, self._silence)
            return self._client

    def _call(self, name: str, work: Callable[[], T]) -> T:
        """Do ``work``; what boto3 did not retry by itself (a body that broke off, a conflict of writers) is tried again.

        Raises:
            Refused: a conditional write found an object there.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                return work()
            except _boto_error() as error:
                if refused(error):
                    raise Refused(error) from error
                if attempt == self._attempts or not retryable(error):
                    raise translated(error, self.uri, name, self._endpoint) from error
            time.sleep(min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
        raise AssertionError("unreachable")

    def _check_bucket(self) -> None:
        if not self._bucket_seen:
            self._call("", lambda: self._s3.list_objects_v2(Bucket=self.bucket, MaxKeys=1, Prefix=self.prefix))
            self._bucket_seen = True


def _boto_error() -> tuple[type[Exception], ...]:
    """What boto3 raises: answers of the server, and everything short of an answer, some of it as urllib3 said it."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, HTTPError)


def _client(endpoint: str | None, region: str | None, attempts: int, silence: float) -> S3Client:
    import boto3
    from botocore.config import Config

    own = bool(endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    config = Config(
        signature_version="s3v4",
        retries={"mode": "adaptive", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if own else "auto"},
        max_pool_connections=2 * PARALLEL,
        connect_timeout=10,
        read_timeout=silence,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    client = session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region or session.region_name or "us-east-1",
        config=config,
    )
    # An endpoint that is given is the job's; that of the environment, and AWS's own, are the platform's.
    guard = guard_of("spec.artifacts.endpoint") if endpoint else None
    if guard is not None:
        from kd_runtime.outbound.s3 import guard_s3_client

        guard_s3_client(client, guard)
    return client


def _digest(head: Any) -> str | None:
    """The whole object's sha256: what we wrote beside it, or the server's own checksum where it is of the whole."""
    if noted := head.get("Metadata", {}).get(DIGEST_KEY):
        return str(noted)
    checksum = head.get("ChecksumSHA256")
    whole = checksum and "-" not in checksum and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    return base64.b64decode(checksum).hex() if whole else None
