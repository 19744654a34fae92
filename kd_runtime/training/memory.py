"""How much memory this process holds and has held, as the kernel counts it."""

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


def _field(name: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)
