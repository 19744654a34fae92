"""Recognising what libraries raise: a lost peer, a collective that failed, memory that ran out, bits that would differ."""

from __future__ import annotations

from kd_runtime.api.failures import (
    AcceleratorMemoryError,
    HostMemoryError,
    KDError,
    PeerLostError,
    SettingsError,
    TransientError,
)

_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "recvValue failed",
)
_COLLECTIVE = ("gloo", "NCCL", "ProcessGroup", "TCPStore", "EADDRINUSE", "address already in use", "c10d")
_ACCELERATOR_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Failed to CUDA",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""A card's memory that ran out where torch's allocator was not asked: in NCCL ("Failed to CUDA calloc"), a library, a kernel."""
_HOST_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "unable to mmap")
INEXACT = "has no form on this accelerator that gives the same bits each time"
"""Said of an operation with which `RankTask.exact` cannot be."""


def recognised(error: Exception) -> Exception:
    """The same failure as one of ours where its class is known; otherwise ``error`` itself."""
    if isinstance(error, KDError):
        return error
    said = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(sign in said for sign in _ACCELERATOR_MEMORY):
        return AcceleratorMemoryError(
            f"train: an accelerator ran out of memory ({_first_line(said)}); lower microBatchSize or maxLength, or raise "
            "deepspeed.zeroStage"
        )
    if isinstance(error, MemoryError) or any(sign in said for sign in _HOST_MEMORY):
        return HostMemoryError(
            f"train: the host ran out of memory ({_first_line(said)}); lower microBatchSize or maxLength, or raise "
            "resources.memory"
        )
    if "does not have a deterministic implementation" in said:
        return SettingsError(f"train: {said.split()[0]} {INEXACT}")
    if isinstance(error, RuntimeError | ConnectionError):
        if any(sign in said for sign in _PEER):
            return PeerLostError(f"another rank is gone ({_first_line(said)})")
        if any(sign in said for sign in _COLLECTIVE):
            return TransientError(f"a collective operation failed ({_first_line(said)})")
    return error


def _first_line(said: str) -> str:
    return said.strip().splitlines()[0][:200] if said.strip() else "no message"
