"""What a model is, read from its config and its safetensors headers: no weights are loaded, no torch is needed."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.planning.sources import WEIGHTS_INDEX, WHOLE_WEIGHTS, Source, SourceFile

MAX_HEADER_BYTES = 100 << 20
DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class ModelHeader:
    """A model's shape: parameters in all; layers; sizes of hidden states, queries, keys and vocabulary; bytes of its weights."""

    architecture: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    weight_bytes: int
    tied: bool
    max_positions: int
    queries: int
    """Heads times their width."""
    keys: int
    """The same of keys, and of values."""

    @property
    def head_parameters(self) -> int:
        """Parameters of the output layer."""
        return self.hidden * self.vocabulary


def read_config(source: Source) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        SettingsError: there is none, or it is not JSON.
    """
    try:
        config = json.loads(source.read("config.json"))
    except ValueError as error:
        raise SettingsError(f"{source.uri}/config.json: is not JSON ({error}); save the model again") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{source.uri}/config.json: is not an object; save the model again")
    return config


def read_header(source: Source, files: list[SourceFile]) -> ModelHeader:
    """Shape of the model at ``source``; checks that every safetensors file is as long as its header says.

    Raises:
        SettingsError: no config.json, no model.safetensors and no index of its parts.
        DataError: a file is cut off or its header is not readable; the message names the file.
    """
    names = {f.path for f in files}
    if "config.json" not in names:
        raise SettingsError(
            f"{source.uri}: holds no config.json, so it is not a Hugging Face model folder; check the URI"
        )
    if WHOLE_WEIGHTS not in names and WEIGHTS_INDEX not in names:
        raise SettingsError(
            f"{source.uri}: holds neither {WHOLE_WEIGHTS} nor {WEIGHTS_INDEX}; convert the weights to safetensors first "
            "(save_pretrained does), under these names"
        )
    weights = [f for f in files if f.path.endswith(".safetensors")]
    config = read_config(source)
    text = config.get("text_config") or config
    heads = int(text.get("num_attention_heads") or 1)
    hidden = int(text.get("hidden_size", 0))
    width = int(text.get("head_dim") or hidden // heads)
    parameters = sum(_file_parameters(source, file) for file in weights)
    _check_index(source, names)
    return ModelHeader(
        architecture=(config.get("architectures") or ["unknown"])[0],
        parameters=parameters,
        layers=int(text.get("num_hidden_layers", 0)),
        hidden=hidden,
        intermediate=int(text.get("intermediate_size", 0)),
        vocabulary=int(text.get("vocab_size", 0)),
        weight_bytes=sum(f.size for f in weights),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        max_positions=int(text.get("max_position_embeddings", 0)),
        queries=heads * width,
        keys=int(text.get("num_key_value_heads") or heads) * width,
    )


def tensor_header(source: Source, file: SourceFile) -> dict[str, Any]:
    """The JSON header of one safetensors file, checked against the file's length.

    Raises:
        DataError: the file is shorter or longer than its header says, or the header is no JSON.
    """
    where = f"{source.uri.rstrip('/')}/{file.path}"
    if file.size < 8:
        raise DataError(f"{where}: has {file.size} bytes, too few for a safetensors header; upload it again")
    (length,) = struct.unpack("<Q", source.read(file.path, 0, 8))
    if length > min(MAX_HEADER_BYTES, file.size - 8):
        raise DataError(
            f"{where}: its header says {length} bytes but the file has {file.size}; it is cut off or no safetensors file, upload it again"
        )
    try:
        header = json.loads(source.read(file.path, 8, length))
    except ValueError as error:
        raise DataError(f"{where}: its header is not JSON ({error}); upload it again") from error
    tensors = {k: v for k, v in header.items() if k != "__metadata__"}
    end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
    if file.size != 8 + length + end:
        raise DataError(
            f"{where}: has {file.size} bytes where its header promises {8 + length + end}; it is cut off, upload it again"
        )
    return tensors


def _file_parameters(source: Source, file: SourceFile) -> int:
    return sum(math.prod(t["shape"]) for t in tensor_header(source, file).values())


def _check_index(source: Source, names: set[str]) -> None:
    if WEIGHTS_INDEX not in names:
        return
    wanted = set(json.loads(source.read(WEIGHTS_INDEX))["weight_map"].values())
    missing = sorted(wanted - names)
    if missing:
        raise DataError(
            f"{source.uri}: {WEIGHTS_INDEX} names {missing[0]}, which is not there ({len(missing)} files missing); upload it"
        )
