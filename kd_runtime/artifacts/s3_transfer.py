"""Large objects to and from S3: parts in parallel, and what was moved before an interruption is not moved again."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_runtime.artifacts.store import BLOCK_BYTES, ObjectInfo, Progress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MOST_PARTS = 10_000
Attempt = Callable[[Callable[[], None]], None]
"""Does a piece of work, and again where that may help."""


class MultipartUpload:
    """One file's way into a bucket. ``run`` may be called again after a failure: parts that arrived are kept."""

    def __init__(
        self,
        s3: S3Client,
        bucket: str,
        key: str,
        path: Path,
        metadata: dict[str, str],
        part_bytes: int,
        if_absent: bool,
    ):
        size = path.stat().st_size
        self._place: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._s3, self._path, self._metadata = s3, path, metadata
        self._part_bytes = max(part_bytes, -(-size // MOST_PARTS))
        self._count = max(1, -(-size // self._part_bytes))
        self._condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        self._upload: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}

    def run(self, parallel: int) -> str:
        """Send what is missing, then complete; the ETag. Raises botocore's errors."""
        if self._upload is None:
            answer = self._s3.create_multipart_upload(
                **self._place,
                ChecksumAlgorithm="SHA256",
                Metadata=self._metadata,
            )
            self._upload, self._parts = answer["UploadId"], {}
        missing = [number for number in range(1, self._count + 1) if number not in self._parts]
        with ThreadPoolExecutor(parallel) as pool:
            for number, part in zip(missing, pool.map(self._send, missing), strict=True):
                self._parts[number] = part
        try:
            return self._complete()
        except self._s3.exceptions.NoSuchUpload:
            self._upload = None
            if (etag := self._arrived()) is None:
                raise  # somebody aborted it: begin anew
            return etag

    def abort(self) -> None:
        """Free what the server keeps of an upload that will not be completed."""
        if self._upload is not None:
            self._s3.abort_multipart_upload(**self._place, UploadId=self._upload)

    def _complete(self) -> str:
        parts: Any = {"Parts": [self._parts[number] for number in sorted(self._parts)]}
        answer = self._s3.complete_multipart_upload(
            **self._place, UploadId=str(self._upload), MultipartUpload=parts, **self._condition
        )
        return answer["ETag"].strip('"')

    def _arrived(self) -> str | None:
        """The ETag of what is there, if it is ours: a completion that succeeded may have been answered with an error."""
        try:
            head = self._s3.head_object(**self._place)
        except self._s3.exceptions.ClientError:
            return None
        return head["ETag"].strip('"') if head["Metadata"] == self._metadata else None

    def _send(self, number: int) -> dict[str, Any]:
        with self._path.open("rb") as file:
            file.seek((number - 1) * self._part_bytes)
            body = file.read(self._part_bytes)
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        answer = self._s3.upload_part(
            **self._place, UploadId=str(self._upload), PartNumber=number, Body=body, ChecksumSHA256=checksum
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}


class RangedDownload:
    """One object's way to ``to``: ranges of the version that ``info`` names, in parallel, into ``to.part``.

    ``to.part.json`` lists the ranges that arrived, so that the next process goes on; it is dropped where the object is
    another one by then.
    """

    def __init__(
        self,
        s3: S3Client,
        bucket: str,
        key: str,
        info: ObjectInfo,
        to: Path,
        part_bytes: int,
        progress: Progress | None,
    ):
        self._place: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._s3, self._info, self._to = s3, info, to
        self._part_bytes, self._progress = part_bytes, progress or (lambda _: None)
        self._part = to.with_name(to.name + ".part")
        self._list = to.with_name(to.name + ".part.json")
        self._identity = {"etag": info.etag, "size": info.size, "part_bytes": part_bytes}
        self._done: set[int] = set()
        self._guard = threading.Lock()

    def run(self, parallel: int, attempt: Attempt) -> None:
        """Fetch what is missing, then move into place."""
        self._to.parent.mkdir(parents=True, exist_ok=True)
        self._done = self._arrived()
        ranges = range(-(-self._info.size // self._part_bytes))
        self._progress(sum(self._length(number) for number in self._done))
        target = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.truncate(target, self._info.size)
            missing = [number for number in ranges if number not in self._done]
            with ThreadPoolExecutor(parallel) as pool:
                list(pool.map(lambda number: attempt(lambda: self._fetch(target, number)), missing))
        finally:
            os.close(target)
        self._part.replace(self._to)
        self._list.unlink(missing_ok=True)

    def _arrived(self) -> set[int]:
        try:
            noted = json.loads(self._list.read_text())
            if noted["identity"] == self._identity and self._part.exists():
                return set(noted["done"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # nothing was begun, or its list was cut off: begin anew
        return set()

    def _length(self, number: int) -> int:
        return min(self._part_bytes, self._info.size - number * self._part_bytes)

    def _fetch(self, target: int, number: int) -> None:
        start = number * self._part_bytes
        stop = start + self._length(number)
        answer = self._s3.get_object(**self._place, Range=f"bytes={start}-{stop - 1}", IfMatch=self._info.etag)
        place = start
        for block in answer["Body"].iter_chunks(BLOCK_BYTES):
            os.pwrite(target, block, place)
            place += len(block)
        self._note(number)
        self._progress(stop - start)

    def _note(self, number: int) -> None:
        with self._guard:
            self._done.add(number)
            noted = {"identity": self._identity, "done": sorted(self._done)}
            temporary = self._list.with_name(self._list.name + ".new")
            temporary.write_text(json.dumps(noted))
            temporary.replace(self._list)
