"""Models on a hub, in a folder and behind a pointer: one digest for one content, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import fake_model
from hub import RecordedHub
from manifests import FULL, job
from s3_server import S3Server

from kd_runtime.api.failures import DataError, DeniedError, SettingsError
from kd_runtime.api.job import ModelSource
from kd_runtime.api.parse import parse_job
from kd_runtime.api.secret_variables import secret_variable
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.store import body_sha256, open_store
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.fetch import fetch_external, secret_token
from kd_runtime.planning.plan import External, ExternalFile
from kd_runtime.planning.resolve import Resolver
from kd_runtime.planning.sources import HubSource, content_digest, model_files, open_model, open_source


def external_of(source, memory: DigestMemory, revision: str | None = None) -> External:  # type: ignore[no-untyped-def]
    files = model_files(source.files())
    listed = tuple(ExternalFile(path=f.path, size=f.size, sha256=memory.sha256(source, f)) for f in files)
    digest = content_digest([(f.path, f.sha256) for f in listed])
    return External(kind="model", uri=source.uri, revision=revision, digest=digest, files=listed)


@pytest.fixture
def memory(tmp_path: Path) -> DigestMemory:
    return DigestMemory(open_store(f"file://{tmp_path}/store/"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    fake_model(tmp_path / "repo", 3)
    with RecordedHub({"owner/name": tmp_path / "repo"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server


def test_a_hub_and_a_folder_of_the_same_content_have_one_digest(
    tmp_path: Path, memory: DigestMemory, hub: RecordedHub
) -> None:
    there = external_of(HubSource("hf://owner/name", "main"), memory)
    here = external_of(open_model(f"file://{tmp_path}/repo"), memory)
    assert there.digest == here.digest
    assert not any("resolve" in r and "safetensors" in r for r in hub.requests), "weights are known by their LFS ids"


def test_a_hub_model_is_fetched_into_the_cache_and_verified(
    tmp_path: Path, memory: DigestMemory, hub: RecordedHub
) -> None:
    external = external_of(HubSource("hf://owner/name", "main"), memory, "main")
    folder = fetch_external(external, Cache(tmp_path / "cache"), memory)
    assert {f.path: body_sha256(folder / f.path) for f in external.files} == {f.path: f.sha256 for f in external.files}
    before = len(hub.requests)
    assert fetch_external(external, Cache(tmp_path / "cache"), memory) == folder
    assert not any("resolve" in r for r in hub.requests[before:])


def test_two_revisions_of_one_repository_are_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {f"owner/name@{name}": fake_model(tmp_path / name, number) for number, name in enumerate(("one", "two"))}
    store = open_store(f"file://{tmp_path}/store/")
    (tmp_path / "data.jsonl").write_text('{"instruction": "a"}\n')
    spec = parse_job(job(FULL, tmp_path, tmp_path / "data.jsonl", f"file://{tmp_path}/store/")).spec
    with RecordedHub(folders) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        resolver = Resolver(spec, store, DigestMemory(store))
        one, two = (resolver.model(ModelSource(uri="hf://owner/name", revision=r), "teacher") for r in ("one", "two"))
    assert one.digest != two.digest


def test_a_hub_file_that_changed_since_the_plan_is_refused(
    tmp_path: Path, memory: DigestMemory, hub: RecordedHub
) -> None:
    external = external_of(HubSource("hf://owner/name", "main"), memory, "main")
    fake_model(tmp_path / "repo", 4)
    with pytest.raises(DataError, match="changed since the plan was made"):
        fetch_external(external, Cache(tmp_path / "cache"), memory)


def test_a_repository_that_is_not_there_is_named(hub: RecordedHub) -> None:
    with pytest.raises(SettingsError, match="hf://owner/other@main"):
        HubSource("hf://owner/other", "main").files()


def test_a_gated_repository_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_model(tmp_path / "repo")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with RecordedHub({"owner/name": tmp_path / "repo"}, token="right") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(DeniedError, match="secretRef"):
            HubSource("hf://owner/name", "main", "wrong").files()
        assert HubSource("hf://owner/name", "main", "right").files()


def test_one_file_is_found_in_the_cache_under_each_of_its_names(
    tmp_path: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    """A file that was renamed has the digest that it had, and its copy has the old name."""
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)
    bucket = {"endpoint": s3_server.url, "region": "us-east-1"}
    store = open_store(f"s3://{s3_server.bucket}/renamed/", **bucket)
    cache, digests = Cache(tmp_path / "cache"), set()
    for name in ("old.jinja", "new.jinja", "old.jinja"):
        store.put(name, b"{{ messages }}")
        source = open_source(f"s3://{s3_server.bucket}/renamed/{name}", **bucket)
        (file,) = source.files()
        listed = ExternalFile(path=file.path, size=file.size, sha256=memory.sha256(source, file))
        digest = content_digest([("", listed.sha256)])
        external = External(kind="template", uri=source.uri, digest=digest, size=file.size, files=(listed,))
        folder = fetch_external(external, cache, memory, **bucket)
        assert (folder / name).read_bytes() == b"{{ messages }}"
        digests.add(digest)
    assert len(digests) == 1


def test_a_changed_local_model_is_refused(tmp_path: Path, memory: DigestMemory) -> None:
    external = external_of(open_model(f"file://{fake_model(tmp_path / 'm')}"), memory)
    assert fetch_external(external, Cache(tmp_path / "cache"), memory) == tmp_path / "m"
    fake_model(tmp_path / "m", 9)
    with pytest.raises(DataError, match=r"model\.safetensors.*changed"):
        fetch_external(external, Cache(tmp_path / "cache"), memory)


@pytest.mark.parametrize(
    ("kind", "file"), [("model", "model.safetensors.index.json"), ("tokenizer", "special_tokens_map.json")]
)
def test_a_file_that_loading_reads_and_the_plan_did_not_see_is_refused(
    tmp_path: Path, memory: DigestMemory, kind: str, file: str
) -> None:
    external = external_of(open_model(f"file://{fake_model(tmp_path / 'm')}"), memory).model_copy(update={"kind": kind})
    (tmp_path / "m" / "notes.txt").write_text("read by nobody")
    assert fetch_external(external, Cache(tmp_path / "cache"), memory) == tmp_path / "m"
    (tmp_path / "m" / file).write_text("{}")
    with pytest.raises(DataError, match=rf"m/{file}: was added since the plan was made.*plan again"):
        fetch_external(external, Cache(tmp_path / "cache"), memory)


def test_a_model_with_an_adapter_beside_its_weights_is_refused(tmp_path: Path) -> None:
    folder = fake_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    store = open_store(f"file://{tmp_path}/store/")
    spec = parse_job(job(FULL, tmp_path, tmp_path / "data.jsonl", f"file://{tmp_path}/store/")).spec
    resolver = Resolver(spec, store, DigestMemory(store))
    source = ModelSource(uri=f"file://{folder}/")
    with pytest.raises(SettingsError, match=r"m/: adapter_config\.json lies beside the weights.*merge the adapter"):
        resolver.model(source)
    assert resolver.model(source, "tokenizer").digest


def test_a_digest_is_computed_once_and_remembered(
    tmp_path: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_model(f"file://{fake_model(tmp_path / 'm')}")
    first = external_of(source, memory)
    monkeypatch.setattr("kd_runtime.planning.digests.body_sha256", lambda _: pytest.fail("read again"))
    assert external_of(source, DigestMemory(memory._store)).digest == first.digest


def test_hidden_folders_of_a_dataset_are_left_out_as_hidden_files_are(tmp_path: Path) -> None:
    """A run folder beside the data (.kd) and a notebook's checkpoints hold JSON lines, too."""
    places = (
        "a.jsonl",
        "more/b.jsonl",
        ".c.jsonl",
        ".kd/store/rejects.jsonl",
        "more/.ipynb_checkpoints/b.jsonl",
        "_SUCCESS",
    )
    for place in places:
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / place).write_text("" if place == "_SUCCESS" else '{"instruction": "a"}\n')
    store = open_store(f"file://{tmp_path}/store/")
    spec = parse_job(job(FULL, tmp_path, tmp_path / "data", f"file://{tmp_path}/store/")).spec
    external = Resolver(spec, store, DigestMemory(store)).dataset(spec.dataset)
    assert [file.path for file in external.files] == ["a.jsonl", "more/b.jsonl"]


def test_another_scheme_is_refused() -> None:
    with pytest.raises(SettingsError, match="use hf://, s3:// or file://"):
        open_source("ftp://host/x")


def test_a_model_source_has_no_token_unless_its_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource.model_validate(
        {"uri": "hf://a/b", "revision": "c", "secretRef": {"name": "my-hub", "key": "the.token"}}
    )
    assert source.secret_ref is not None
    secret = f"{source.secret_ref.name}/{source.secret_ref.key}"
    assert secret_token(secret) is None
    assert secret_variable(secret) == "KD_SECRET_MY_HUB_THE_TOKEN"
    monkeypatch.setenv("KD_SECRET_MY_HUB_THE_TOKEN", "t")
    assert secret_token(secret) == "t"
