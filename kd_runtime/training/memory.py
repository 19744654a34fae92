"""How much memory this process holds and has held: of the host as the kernel counts it, of a card as torch does."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """What is resident now; 0 where the kernel does not say."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """The most that was ever resident; 0 where the kernel does not say.

    Not `getrusage`'s: that keeps the parent's peak over the exec.
    """
    return _field("VmHWM")


def accelerator_peak_bytes() -> int:
    """The most that torch's allocator ever took of the card, what lay unused between tensors included; 0 without one."""
    import torch

    return int(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else 0


def _field(name: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)
