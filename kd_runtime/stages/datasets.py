"""A dataset's files and their records: which files belong to it, and one reader for each form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kd_runtime.api.dataset import DatasetFormat
from kd_runtime.api.failures import DataError
from kd_runtime.stages.dataset_records import Malformed, Record, opened
from kd_runtime.stages.dataset_tables import read_arrow, read_parquet
from kd_runtime.stages.dataset_text import BYTE_ORDER_MARK, CHUNK_BYTES, read_csv, read_json, read_jsonl

DEFAULT_SPLIT = "train"
ENDINGS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.JSONL: (".jsonl", ".ndjson"),
    DatasetFormat.JSON: (".json",),
    DatasetFormat.Parquet: (".parquet",),
    DatasetFormat.CSV: (".csv",),
}
HUB_KINDS: tuple[tuple[str, ...], ...] = ((".parquet",), (".arrow",), (".jsonl", ".ndjson", ".json"), (".csv",))
"""What a Hugging Face dataset may consist of; the first kind that is there is its data."""
HUB_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
KNOWN_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval", "evaluation")


@dataclass(frozen=True)
class ChosenFiles:
    """The files that are read, in order, and those that lie beside them and are not; names below the dataset's URI."""

    read: tuple[str, ...]
    ignored: tuple[str, ...]


def choose_files(names: Sequence[str], form: DatasetFormat, split: str | None, uri: str) -> ChosenFiles:
    """The data files among ``names``. A file that is there alone is taken whatever its name.

    Raises:
        DataError: none fits, the split is not there, or there are several configurations.
    """
    if form is DatasetFormat.HuggingFace:
        chosen = _hub_files(sorted(names), split or DEFAULT_SPLIT, uri)
    else:
        chosen = [name for name in sorted(names) if _ending(name) in ENDINGS[form]]
        chosen = list(names) if len(names) == 1 else chosen
    if not chosen:
        endings = ENDINGS.get(form) or tuple(ending for kind in HUB_KINDS for ending in kind)
        raise DataError(
            f"spec.dataset.uri: {uri} holds no {form.value} file ({', '.join(endings)}) but {', '.join(sorted(names)[:5])}; "
            "correct uri or format"
        )
    return ChosenFiles(tuple(chosen), tuple(sorted(set(names) - set(chosen))))


def read_file(path: Path, name: str, form: DatasetFormat, columns: tuple[str, ...]) -> Iterator[Record | Malformed]:
    """The records of one file; ``columns`` are the fields that are mapped.

    Raises:
        DataError: the file as a whole cannot be read, or lacks a column.
    """
    match form:
        case DatasetFormat.JSONL:
            return read_jsonl(path, name)
        case DatasetFormat.JSON:
            return read_json(path, name)
        case DatasetFormat.CSV:
            return read_csv(path, name, columns)
        case DatasetFormat.Parquet:
            return read_parquet(path, name, columns)
        case DatasetFormat.HuggingFace:
            return _read_hub(path, name, columns)


def _read_hub(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Record | Malformed]:
    ending = _ending(name)
    if ending == ".arrow":
        return read_arrow(path, name, columns)
    if ending == ".csv":
        return read_csv(path, name, columns)
    if ending in (".json", ".jsonl", ".ndjson"):
        return read_json(path, name) if _begins_array(path, name) else read_jsonl(path, name)
    return read_parquet(path, name, columns)


def _begins_array(path: Path, name: str) -> bool:
    """Whether a `.json` file of the hub is one array, or has an object a line."""
    with opened(path, name) as file:
        return file.stream.read(CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _hub_files(names: list[str], split: str, uri: str) -> list[str]:
    data = [name for name in names if PurePosixPath(name).name not in HUB_METADATA]
    for kind in HUB_KINDS:
        if files := [name for name in data if _ending(name) in kind]:
            return _of_split(files, split, uri)
    return []


def _of_split(files: list[str], split: str, uri: str) -> list[str]:
    """The files whose names mention ``split``; all of them, as `train`, where no name mentions any."""
    mentioned = {known for known in (*KNOWN_SPLITS, split) for file in files if _before(file, known) is not None}
    if not mentioned and split == DEFAULT_SPLIT:
        return files
    chosen = [file for file in files if _before(file, split) is not None]
    if not chosen:
        raise DataError(
            f"spec.dataset.split: {uri} has no split {split!r}; it has {', '.join(sorted(mentioned)) or DEFAULT_SPLIT}"
        )
    configurations = sorted({str(_before(file, split)) for file in chosen})
    if len(configurations) > 1:
        raise DataError(
            f"spec.dataset.uri: {uri} holds several configurations ({', '.join(configurations)}); copy one to a folder of its own"
        )
    return chosen


def _before(name: str, split: str) -> str | None:
    """The folders before the part of ``name`` that mentions ``split``; None where none does.

    A part mentions a split that stands in it as a word: ``train-00000-of-00002.parquet``, ``train/``, ``gsm8k_test.csv``.
    """
    parts = name.split("/")
    for number, part in enumerate(parts):
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])", part):
            return "/".join(parts[:number])
    return None


def _ending(name: str) -> str:
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix
