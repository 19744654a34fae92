"""`kd run` after a hand deleted objects of artifacts whose manifests are there: what is needed is made again, and it is said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from local.test_local_units import KD, Counted, Job, counted, teacher, tiny_job  # noqa: F401 - fixtures
from s3_server import S3Server, s3, s3_server  # noqa: F401 - fixtures

from kd_runtime.artifacts.lineage import list_artifacts
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.store import Store, open_store

pytestmark = pytest.mark.runtime


def typed(*arguments: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    done = subprocess.run([*KD, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def made(store: Store) -> dict[str, Manifest]:
    return {manifest.stage_type: manifest for manifest in list_artifacts(store)}


@pytest.fixture
def in_a_bucket(tiny_job: Job, s3: S3Server) -> tuple[Path, Store]:  # noqa: F811 - fixtures
    """A manifest of 20 rows (a smoke unit and another), and its store."""
    manifest = tiny_job.write(rows=20, samples=1)
    at = {"uri": f"s3://{s3.bucket}/{tiny_job.folder.parent.name}/", "endpoint": s3.url, "region": "us-east-1"}
    document = yaml.safe_load(manifest.read_text())
    document["spec"]["artifacts"] = at
    manifest.write_text(yaml.safe_dump(document))
    return manifest, open_store(at["uri"], endpoint=at["endpoint"], region=at["region"])


def test_what_lost_an_object_is_made_again_where_it_is_needed_and_only_what_is_gone_is_asked(
    in_a_bucket: tuple[Path, Store],
    counted: Counted,  # noqa: F811 - a fixture
) -> None:
    manifest, store = in_a_bucket
    typed("run", manifest)
    asked, before = counted.taken(), made(store)
    assert len(asked.rows) == 20

    (rows,) = before["ingest"].select("rows/")
    store.delete(rows.name)
    gone = f"stage dataset: {store.uri}{rows.name} is gone, so the artifact {before['ingest'].key[:12]} is not whole: "
    assert f"{gone}no stage that runs reads it, so it is left as it is" in typed("plan", manifest)

    answers, shard = before["generate"].select("rows/")[0], before["capture"].select("logits/")[0]
    for name in (answers.name, shard.name):
        store.delete(name)
    said = typed("run", manifest)
    assert f"{gone}it is made again" in said
    for ref, stage in ((answers, "answers"), (shard, "logits")):
        assert f"stage {stage}: {store.uri}{ref.name} is gone" in said
    again, after = counted.taken(), made(store)
    assert not again.chats  # what the teacher answered is there
    assert set(again.rows) < set(asked.rows)
    assert set(again.rows.values()) == {1}
    for kind, former in before.items():
        assert after[kind].content_digest == former.content_digest
        assert store.exists(f"history/{former.sha256}.json")
    assert " is gone" not in typed("plan", manifest)
