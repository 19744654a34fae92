"""Reads DistillKit 1.0's captured logits: parquet rows of packed token ids and compressed logprobs, and their YAML config.

A row has N ``input_ids`` and N - 1 entries a column: entry j is about token j + 1. ``bytepacked_indices`` are K ids of
ceil(log2 d) bits, most significant bit first. ``compressed_logprobs`` are the first ``exact_k`` logprobs (or, with delta
encoding, their steps) in ``exact_dtype``, then coefficients of a fit over the rank of the others, then residuals of that
fit in bins of a scale and integers of some bits. Tail mass, mask and checksums are not stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd_runtime.api.failures import DataError

CONFIG = "compression_config.yaml"
_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Bin(BaseModel):
    """Residuals of some entries."""

    scale_dtype: str
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(ge=1)


class Compression(BaseModel):
    """``compression_config.yaml``, as far as reading needs it."""

    model_config = ConfigDict(extra="ignore")

    d: int = Field(ge=1)
    k: int = Field(ge=1)
    exact_k: int = Field(ge=0)
    exact_dtype: str = "float32"
    polynomial_terms: list[int | str] | None = None
    term_dtype: str = "float32"
    residual_bins: list[Bin] = []
    delta_encoding: bool = True
    normalize_t: bool = False

    @classmethod
    def read(cls, folder: Path) -> Compression:
        """The config beside the parquet files. DataError where it is absent, or no such config."""
        path = folder / CONFIG
        try:
            found = cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; DistillKit writes it beside its parquet files") from error
        except (yaml.YAMLError, ValidationError) as error:
            raise DataError(f"{path}: no compression config of DistillKit ({error}); check the file") from error
        dtypes = [found.exact_dtype, found.term_dtype, *(each.scale_dtype for each in found.residual_bins)]
        if unknown := [dtype for dtype in dtypes if dtype not in _WIDTHS]:
            raise DataError(f"{path}: dtype {unknown[0]} is not known; use one of {', '.join(_WIDTHS)}")
        return found

    @property
    def index_bits(self) -> int:
        """Bits of an id, as DistillKit counts them: in float32."""
        return max(1, int(np.ceil(np.log2(np.float32(self.d)))))


@dataclass(frozen=True)
class Captured:
    """One row: N ids, and the head of each token but the first."""

    where: str
    input_ids: NDArray[np.int64]
    """[N]"""
    top_ids: NDArray[np.int64]
    """[N-1, K]"""
    top_lp: NDArray[np.float64]
    """[N-1, K]"""


def captured(folder: Path) -> Iterator[Captured]:
    """The rows of all parquet files of ``folder``, a row group in memory at a time. DataError, by file and row."""
    from pyarrow import parquet

    config = Compression.read(folder)
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: it holds no parquet file; name the folder that DistillKit wrote")
    columns = ["input_ids", "compressed_logprobs", "bytepacked_indices"]
    for path in files:
        file = parquet.ParquetFile(path)
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise DataError(f"{path}: column {missing[0]} is missing; only DistillKit's packed format is read")
        number = 0
        for batch in file.iter_batches(batch_size=16, columns=columns):
            for ids, values, indices in zip(*batch.to_pydict().values(), strict=True):
                yield _row(f"{path}:{number}", config, ids, values, indices)
                number += 1


def _row(where: str, config: Compression, ids: list[int], values: list[Any], indices: list[Any]) -> Captured:
    try:
        packed, compressed = np.array(indices, np.uint8), np.array(values, np.uint8)
        top_ids = unpacked(packed, config.index_bits, config.k)
        top_lp = logprobs(compressed, config)
    except (ValueError, IndexError) as error:
        raise DataError(f"{where}: its entries do not fit {CONFIG} ({error}); use the config of its capture") from error
    if len(top_ids) != len(ids) - 1 or len(top_lp) != len(top_ids):
        raise DataError(f"{where}: {len(ids)} tokens with {len(top_ids)} entries, one fewer is expected; capture again")
    return Captured(where, np.array(ids, np.int64), top_ids, top_lp)


def unpacked(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Integers [P, count] of ``bits`` each, most significant first, from bytes [P, B]. ValueError: too few bytes."""
    stream = np.unpackbits(data, axis=1, count=count * bits) if data.size else data.reshape(0, count * bits)
    if data.shape[1] * 8 < count * bits and data.size:
        raise ValueError(f"{data.shape[1]} bytes for {count} integers of {bits} bits")
    powers = (1 << np.arange(bits - 1, -1, -1, dtype=np.int64)).astype(np.int64)
    return stream.reshape(len(data), count, bits).astype(np.int64) @ powers


def logprobs(data: NDArray[np.uint8], config: Compression) -> NDArray[np.float64]:
    """[P, K] from ``compressed_logprobs`` [P, B]. ValueError where there are fewer or more bytes than the config says."""
    reader = _Reader(data)
    exact = reader.floats(config.exact_dtype, config.exact_k)
    rest = config.k - config.exact_k
    fit = np.zeros((len(data), rest))
    if config.polynomial_terms:
        coefficients = reader.floats(config.term_dtype, len(config.polynomial_terms))
        fit = coefficients @ _terms(config.polynomial_terms, rest, config.normalize_t).T
    at = 0
    for each in config.residual_bins:
        scale = reader.floats(each.scale_dtype, 1)
        fit[:, at : at + each.num_elements] += scale * reader.signed(each.element_bits, each.num_elements)
        at += each.num_elements
    reader.end()
    values = np.concatenate([exact, fit], 1)
    return np.cumsum(values, 1) if config.delta_encoding else values


def _terms(names: list[int | str], count: int, normalised: bool) -> NDArray[np.float64]:
    """[count, terms]: powers, sqrt and exp of the ranks 0, 1, ... or of as many points of [0, 1]."""
    t = np.linspace(0, 1, count) if normalised else np.arange(count, dtype=np.float64)
    known = {"sqrt": np.sqrt, "exp": np.exp}
    for name in names:
        if isinstance(name, str) and name not in known:
            raise ValueError(f"polynomial term {name}")
    return np.stack([known[name](t) if isinstance(name, str) else t**name for name in names], 1)


@dataclass
class _Reader:
    """Goes along the second axis of bytes [P, B]."""

    data: NDArray[np.uint8]
    at: int = 0

    def take(self, count: int) -> NDArray[np.uint8]:
        part = self.data[:, self.at : self.at + count]
        if len(self.data) and part.shape[1] < count:
            raise ValueError(f"{self.data.shape[1]} bytes, more than {self.at + count - 1} are expected")
        self.at += count
        return np.ascontiguousarray(part).reshape(len(self.data), count)

    def floats(self, dtype: str, count: int) -> NDArray[np.float64]:
        part = self.take(count * _WIDTHS[dtype])
        if dtype == "bfloat16":
            return (part.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return part.view(f"<f{_WIDTHS[dtype]}").astype(np.float64)

    def signed(self, bits: int, count: int) -> NDArray[np.float64]:
        """Residuals in units of their scale: bits b stand for b - 2^(bits-1), a single bit for -1 or 1."""
        values = unpacked(self.take(math.ceil(bits * count / 8)), bits, count).astype(np.float64)
        return 2 * values - 1 if bits == 1 else values - 2.0 ** (bits - 1)

    def end(self) -> None:
        if len(self.data) and self.at != self.data.shape[1]:
            raise ValueError(f"{self.data.shape[1]} bytes, {self.at} are expected")
