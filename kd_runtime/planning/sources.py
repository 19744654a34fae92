"""Where models, datasets and templates come from: one small view of a folder of files at file://, s3:// or hf://."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kd_runtime.api.failures import DeniedError, SettingsError, StorageError
from kd_runtime.artifacts.store import Missing, ObjectInfo, Store, open_store, source_store

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
)
"""What loading reads beside the weights, by name."""
TOKENIZER_FILES = tuple(
    f for f in MODEL_FILES if f not in ("config.json", "generation_config.json", "preprocessor_config.json")
)
WEIGHTS = (".safetensors", ".safetensors.index.json")
WHOLE_WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
"""One of them is what loading starts from; other *.safetensors beside them count, since vLLM reads them all."""
ADAPTER = "adapter_config.json"
"""Where it lies beside weights, transformers puts its adapter on them: such a folder is refused."""
ADAPTER_REFUSED = (
    f"{ADAPTER} lies beside the weights, and transformers would change them by it; merge the adapter into the weights "
    "(PEFT's merge_and_unload) and save the model, or take its files out"
)
POINTER = "kd.json"
"""A published model's folder holds this file: it names the folder that is current (contract 10)."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its path below the source, bytes, sha256 where the source knows it, and a version tag."""

    path: str
    size: int
    sha256: str | None
    etag: str


class Source(Protocol):
    """A folder of files that is read and never written."""

    uri: str

    def files(self) -> list[SourceFile]:
        """All files, sorted by path."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of one file."""
        ...

    def fetch(self, path: str, to: Path) -> None:
        """Copy one file to ``to``."""
        ...


class StoreSource:
    """A prefix of a file:// or s3:// store."""

    def __init__(self, uri: str, store: Store, names: list[str] | None = None):
        self.uri, self._store, self._names = uri, store, names
        self.one_file = names is not None
        """The URI names a file: its name, like every address, is no part of its content."""

    def files(self) -> list[SourceFile]:
        """All objects below the prefix (or the named ones), sorted by path."""
        return sorted((_as_file(info) for info in self._infos()), key=lambda f: f.path)

    def _infos(self) -> Iterator[ObjectInfo]:
        if self._names is None:
            yield from self._store.list("")
            return
        for name in self._names:
            info = self._store.stat(name)
            if info is None:
                raise StorageError(f"{self.uri}: holds no {name}; check the URI")
            yield info

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes ``start`` to ``start + length`` of one object."""
        return self._store.read_range(path, start, length)

    def fetch(self, path: str, to: Path) -> None:
        """Copy one object to ``to``."""
        self._store.download(path, to)

    def local(self, path: str) -> Path | None:
        """The file itself where the store is a folder of this machine."""
        return Path(self._store.uri.removeprefix("file://")) / path if self._store.uri.startswith("file://") else None


class HubSource:
    """A model or dataset repository of a Hugging Face hub (``$HF_ENDPOINT``), at one revision."""

    def __init__(self, uri: str, revision: str | None, token: str | None = None):
        self.uri, self.revision = uri, revision
        path = uri.removeprefix("hf://")
        self._type = "dataset" if path.startswith("datasets/") else "model"
        self._repo = path.removeprefix("datasets/").strip("/")
        from huggingface_hub import HfApi

        from kd_runtime.outbound.hub import guard_hub

        guard_hub()
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token or None)

    def files(self) -> list[SourceFile]:
        """All files of the repository: LFS files with their sha256, others with their git id alone."""
        with _hub_errors(self.uri, self.revision):
            info = (self._api.dataset_info if self._type == "dataset" else self._api.model_info)(
                self._repo, revision=self.revision, files_metadata=True
            )
        files = [
            SourceFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id or "")
            for s in info.siblings or []
        ]
        return sorted(files, key=lambda f: f.path)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of one file, by an HTTP range request."""
        import httpx
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        from kd_runtime.outbound.hub import hub_client

        url = hf_hub_url(self._repo, path, repo_type=self._type, revision=self.revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token)
        if start or length is not None:
            end = "" if length is None else start + length - 1
            headers["Range"] = f"bytes={start}-{end}"
        try:
            with hub_client() as client:
                answer = client.get(url, headers=headers)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise StorageError(
                f"{self.uri}/{path}: cannot be read ({error}); try again, or mirror the model to s3://"
            ) from error
        body = answer.content
        return body if answer.status_code == 206 or length is None else body[start : start + length]

    def fetch(self, path: str, to: Path) -> None:
        """Download one file through huggingface_hub (resumed where it was cut)."""
        with _hub_errors(self.uri, self.revision):
            folder = to.parent / ".hub"
            got = self._api.hf_hub_download(
                self._repo, path, repo_type=self._type, revision=self.revision, local_dir=folder
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        Path(got).replace(to)


class _hub_errors:
    """Turns the hub's errors into ours, each naming the URI and the remedy."""

    def __init__(self, uri: str, revision: str | None):
        self._what = f"{uri}@{revision}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            raise DeniedError(
                f"{self._what}: the repository is gated; give secretRef a token that was granted access"
            ) from error
        if isinstance(error, errors.RevisionNotFoundError):
            raise SettingsError(
                f"{self._what}: there is no such revision; name a commit, branch or tag that exists"
            ) from error
        if isinstance(error, errors.RepositoryNotFoundError):
            raise SettingsError(
                f"{self._what}: there is no such repository, or it is private; check the name, or give secretRef a token"
            ) from error
        if isinstance(error, (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError)):
            raise StorageError(
                f"{self._what}: the hub cannot be reached ({error}); check HF_ENDPOINT and HF_HUB_OFFLINE"
            ) from error


def open_source(
    uri: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> Source:
    """The folder at ``uri``: hf://, s3:// or file:// (a URI of one file gives a source with that file alone).

    Raises:
        SettingsError: another scheme, or nothing there.
    """
    scheme = uri.partition("://")[0]
    if scheme == "hf":
        return HubSource(uri, revision, token)
    if scheme not in ("file", "s3"):
        raise SettingsError(f"{uri}: scheme {scheme!r} is not read here; use hf://, s3:// or file://")
    if uri.endswith("/") or (scheme == "file" and Path(uri.removeprefix("file://")).is_dir()):
        return StoreSource(uri, open_store(uri.rstrip("/") + "/", endpoint=endpoint, region=region))
    store, name = source_store(uri, endpoint=endpoint, region=region)
    if store.stat(name) is not None:
        return StoreSource(uri, store, [name])
    return StoreSource(uri, open_store(uri + "/", endpoint=endpoint, region=region))


def open_model(
    uri: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> Source:
    """Like open_source; a folder that holds a kd.json is read through it (contract 10)."""
    source = open_source(uri, revision=revision, token=token, endpoint=endpoint, region=region)
    if isinstance(source, StoreSource):
        try:
            pointer = source.read(POINTER)
        except Missing:
            return source
        folder = f"{uri.rstrip('/')}/"
        return open_source(f"{folder}{_pointed_at(pointer, folder)}/", endpoint=endpoint, region=region)
    return source


def _pointed_at(pointer: bytes, folder: str) -> str:
    """The path below ``folder`` that its pointer names."""
    try:
        path = str(json.loads(pointer)["path"].strip("/"))
    except (ValueError, KeyError, TypeError, AttributeError):
        path = ""
    if not path or ".." in path.split("/"):
        raise SettingsError(
            f"{folder}{POINTER}: names no `path` below its folder, so it is no pointer of a published model; "
            "publish again, or remove it where the folder itself holds the model"
        )
    return path


def model_files(files: list[SourceFile], *, remote_code: bool = False) -> list[SourceFile]:
    """Those files that loading a model reads: weights, config, tokenizer, template, and code where it is trusted."""
    chosen = [f for f in files if f.path in MODEL_FILES or ("/" not in f.path and f.path.endswith(WEIGHTS))]
    if remote_code:
        chosen += [f for f in files if f.path.endswith(".py")]
    return sorted(chosen, key=lambda f: f.path)


def tokenizer_files(files: list[SourceFile]) -> list[SourceFile]:
    """Those files that loading a tokenizer and its chat template reads."""
    return [f for f in files if f.path in TOKENIZER_FILES]


def content_digest(files: list[tuple[str, str]]) -> str:
    """sha256 hex over sorted (path, sha256) pairs: a model's or dataset's digest (contract 1)."""
    lines = "".join(f"{path}\0{sha256}\n" for path, sha256 in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _as_file(info: ObjectInfo) -> SourceFile:
    return SourceFile(info.name, info.size, info.sha256, info.etag)
