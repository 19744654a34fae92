"""A dataset and a store in buckets give the same rows as in folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from s3_server import S3Server
from s3_server import s3 as s3  # a fixture
from s3_server import s3_server as s3_server  # a fixture
from stages.ingest_runs import ingest

from kd_runtime.api.failures import DataError

RECORDS = [{"question": f"What is {n}?", "answer": "A number."} for n in range(30)]


def lines(records: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    return s3.new_bucket()


@pytest.mark.parametrize("at", ["", "a.jsonl"])
def test_a_bucket_gives_the_rows_that_a_folder_gives(
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    tiny_models: Path,
    at: str,
) -> None:
    files = {"a.jsonl": lines(RECORDS), "b/c.jsonl": lines(RECORDS[:9]), "notes.txt": b"x"}
    for name, body in files.items():
        s3.client.put_object(Bucket=bucket, Key=f"data/{name}", Body=body)
    local = ingest(tmp_path / "local", tiny_models, files, at=at)
    made = ingest(tmp_path / "s3", tiny_models, {}, uri=f"s3://{bucket}/data/{at}", store=f"s3://{bucket}/team/kd/")
    assert made.manifest.content_digest == local.manifest.content_digest
    assert made.counts == local.counts and made.counts["out"] == 30


def test_an_empty_prefix_is_an_error_that_names_it(bucket: str, tmp_path: Path, tiny_models: Path) -> None:
    with pytest.raises(DataError, match=f"spec.dataset.uri: s3://{bucket}/data/ holds no file"):
        ingest(tmp_path, tiny_models, {}, uri=f"s3://{bucket}/data/", store=f"s3://{bucket}/team/kd/")
