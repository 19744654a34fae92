"""Bits: token ids split into 16 low bits and packed high bits, and bitmaps of scored tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def split_ids(ids: NDArray[Any], bits: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Ids [P, K] as low halves u16 [P, K] and high bits u8 [P, ceil(bits K / 8)], entry 0 in the lowest."""
    low = (ids & 0xFFFF).astype(np.uint16)
    if not bits:
        return low, np.empty((len(ids), 0), np.uint8)
    each = 8 // bits
    high = (ids >> 16).astype(np.uint8)
    width = -(-ids.shape[1] // each)
    high = np.pad(high, ((0, 0), (0, width * each - ids.shape[1]))).reshape(len(ids), width, each)
    return low, np.bitwise_or.reduce(high << (bits * np.arange(each, dtype=np.uint8)), axis=2)


def join_ids(low: NDArray[np.uint16], high: NDArray[np.uint8] | None, bits: int) -> NDArray[np.int32]:
    """Ids i32 [P, K] from the planes that :func:`split_ids` made."""
    ids = low.astype(np.int32)
    if not bits or high is None:
        return ids
    each = 8 // bits
    parts = (high[:, :, None] >> (bits * np.arange(each, dtype=np.uint8))) & ((1 << bits) - 1)
    return ids | parts.reshape(len(ids), high.shape[1] * each)[:, : ids.shape[1]].astype(np.int32) << 16


def pack_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A row's bitmap, u8 [ceil(N / 8)], token 0 in the lowest bit."""
    return np.packbits(mask, bitorder="little")


def unpack_mask(bitmap: NDArray[np.uint8], tokens: int) -> NDArray[np.bool_]:
    """The mask [tokens] of a row's bitmap."""
    return np.unpackbits(bitmap, count=tokens, bitorder="little").view(np.bool_)


def bitmap_bytes(tokens: NDArray[Any]) -> NDArray[np.int64]:
    """Bytes of each row's bitmap, for rows of so many tokens."""
    return (np.asarray(tokens, np.int64) + 7) // 8


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """The indices of all ranges [start, start + length), one after the other."""
    lengths = np.asarray(lengths, np.int64)
    shift = np.asarray(starts, np.int64) - np.cumsum(lengths) + lengths
    index: NDArray[np.int64] = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(shift, lengths)
    return index


def pointers(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Offsets [R+1] of pieces that follow one another."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
