"""The file and wire form of a shard: a safetensors body whose header carries a CRC32C of every plane and of itself.

Bytes: u64 LE length of the header; the header, JSON padded with spaces to a multiple of 8; the planes without gaps,
wide dtypes first so that each is aligned. The header's own CRC is taken over length and header, its own eight digits
being zeros.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.logits.check import DTYPES, expected_length
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.spec import VERSION, Plane, ShardSpec

FORMAT = "KDL"
_PREFIX = struct.Struct("<Q")
_OWN = "crc32c.header"
_PLANE = "crc32c."
_DIGITS = re.compile(rb'"crc32c\.header":"([0-9a-f]{8})"')
_ZEROS = "0" * 8
_RESERVED = {"format", "version", "profile", "k", "m", "temperatures", "vocab", "entropy"}
_MAX_HEADER = 1 << 20


@dataclass(frozen=True)
class Container:
    """A parsed file: its header, and views of the planes' bytes."""

    spec: ShardSpec
    metadata: dict[str, str]
    """What the writer added: the facts that the manifest pins."""
    checksums: dict[str, str]
    """CRC32C of each plane, as eight hex digits."""
    planes: Planes

    def damaged(self) -> list[str]:
        """A sentence for each plane whose bytes are not those that were written."""
        found = {name: checksum(array) for name, array in self.planes.arrays.items()}
        return [
            f"plane {name} has CRC32C {found[name]}, its header says {expected}; fetch or capture it again"
            for name, expected in self.checksums.items()
            if found[name] != expected
        ]


def checksum(array: NDArray[Any]) -> str:
    """CRC32C of an array's bytes, eight hex digits."""
    return f"{crc32c(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data):08x}"


def encode(planes: Planes, metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The pieces of a file, in order. DataError where ``metadata`` has a name that the format uses itself."""
    for name in metadata:
        if name in _RESERVED or name.startswith(_PLANE):
            raise DataError(f"logits: metadata {name} is a name of the format; use another")
    arrays = {name: _little_endian(array) for name, array in planes.arrays.items()}
    tensors, end, bodies = {}, 0, []
    for plane in _file_order(planes.spec):
        array = arrays[plane.name]
        start, end = end, end + array.nbytes
        tensors[plane.name] = {"dtype": plane.dtype, "shape": list(array.shape), "data_offsets": [start, end]}
        bodies.append(array.reshape(-1).view(np.uint8).data)
    own = {"format": FORMAT, "version": VERSION, **planes.spec.metadata(), _OWN: _ZEROS}
    checksums = {_PLANE + name: checksum(array) for name, array in arrays.items()}
    text = json.dumps(
        {"__metadata__": {**metadata, **own, **checksums}, **tensors}, separators=(",", ":"), sort_keys=True
    )
    header = text.encode().ljust(-(-len(text) // 8) * 8)
    prefix = _PREFIX.pack(len(header))
    digits = f"{crc32c(prefix + header):08x}"
    return [prefix, header.replace(f'"{_OWN}":"{_ZEROS}"'.encode(), f'"{_OWN}":"{digits}"'.encode()), *bodies]


def decode(data: bytes | memoryview, where: str) -> Container:
    """Parse ``data`` without copying the planes. DataError, naming ``where``, for anything but a whole KDL v1 file.

    The planes' own checksums are left to :meth:`Container.damaged`: that reads every byte.
    """
    try:
        return _decode(memoryview(data), where)
    except SettingsError as error:
        raise DataError(f"{where}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise DataError(f"{where}: not a whole KDL shard ({error}); fetch or capture it again") from error


def _decode(data: memoryview, where: str) -> Container:
    (length,) = _PREFIX.unpack(data[: _PREFIX.size])
    begin = _PREFIX.size + length
    if length > _MAX_HEADER or begin > len(data):
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    text = bytes(data[_PREFIX.size : begin])
    _refuse_damaged_header(bytes(data[: _PREFIX.size]), text)
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if (metadata["format"], metadata["version"]) != (FORMAT, VERSION):
        raise DataError(
            f"{where}: it is {metadata['format']} {metadata['version']}, this version reads {FORMAT} {VERSION}; "
            "use the version of kd that wrote it"
        )
    spec = ShardSpec.of_metadata(metadata)
    return Container(
        spec,
        {k: v for k, v in metadata.items() if k not in _RESERVED and not k.startswith(_PLANE)},
        {plane.name: metadata[_PLANE + plane.name] for plane in spec.planes()},
        _views(spec, header, data[begin:]),
    )


def _views(spec: ShardSpec, header: dict[str, Any], body: memoryview) -> Planes:
    """The planes as views of ``body``, which they must fill without gap or rest."""
    table = _file_order(spec)
    if set(header) != {plane.name for plane in table}:
        raise ValueError(f"planes {sorted(header)} do not fit profile {spec.profile}")
    arrays: dict[str, NDArray[Any]] = {}
    end = 0
    for plane in table:
        entry = header[plane.name]
        start, stop = entry["data_offsets"]
        if entry["dtype"] != plane.dtype or start != end or not start <= stop <= len(body):
            raise ValueError(f"plane {plane.name} of {entry['dtype']} at bytes {start} to {stop}")
        end = stop
        dtype, shape = DTYPES[plane.dtype], tuple(int(n) for n in entry["shape"])
        arrays[plane.name] = (
            np.frombuffer(body[start:stop], dtype).reshape(shape) if stop > start else np.empty(shape, dtype)
        )
    if end != len(body):
        raise ValueError(f"{len(body)} bytes after its header, which names {end}")
    planes = Planes(spec, arrays)
    for plane in table:
        if len(arrays[plane.name]) != expected_length(plane, planes):
            raise ValueError(f"plane {plane.name} of {len(arrays[plane.name])} entries")
    return planes


def _refuse_damaged_header(prefix: bytes, text: bytes) -> None:
    match = _DIGITS.search(text)
    if match is None:
        raise ValueError("its header has no checksum of its own")
    zeroed = text[: match.start(1)] + _ZEROS.encode() + text[match.end(1) :]
    found = f"{crc32c(prefix + zeroed):08x}"
    if found != match[1].decode():
        raise ValueError(f"its header has CRC32C {found} and says {match[1].decode()}")


def _file_order(spec: ShardSpec) -> list[Plane]:
    """Wide dtypes first: the header is a multiple of 8 bytes, so every plane is aligned."""
    return sorted(spec.planes(), key=lambda plane: (-int(plane.dtype[1:]), plane.name))


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
