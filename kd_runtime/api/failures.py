"""How a process may end: exit classes, and the exceptions that map to them (contract 7)."""

from __future__ import annotations

import errno
import os
from enum import IntEnum


class ExitClass(IntEnum):
    """The exit code of a stage process. Contract 7 gives each its meaning and whether it is retried."""

    Done = 0
    BadSettings = 64
    BadData = 65
    GateUnmet = 66
    TeacherUnreachable = 69
    Bug = 70
    AcceleratorOutOfMemory = 71
    HostOutOfMemory = 72
    Storage = 74
    Transient = 75
    Denied = 77
    PeerLost = 78
    Drained = 80
    Killed = 143

    @property
    def final(self) -> bool:
        """True where a retry cannot help: the stage ends at the first that is seen."""
        return self in _FINAL


_FINAL = frozenset(
    {
        ExitClass.BadSettings,
        ExitClass.BadData,
        ExitClass.GateUnmet,
        ExitClass.Bug,
        ExitClass.AcceleratorOutOfMemory,
        ExitClass.HostOutOfMemory,
        ExitClass.Denied,
    }
)

GANG_ORDER: tuple[ExitClass, ...] = (
    ExitClass.HostOutOfMemory,
    ExitClass.Denied,
    ExitClass.BadSettings,
    ExitClass.BadData,
    ExitClass.GateUnmet,
    ExitClass.AcceleratorOutOfMemory,
    ExitClass.Bug,
    ExitClass.TeacherUnreachable,
    ExitClass.Storage,
    ExitClass.Transient,
    ExitClass.Drained,
    ExitClass.Killed,
    ExitClass.PeerLost,
    ExitClass.Done,
)
"""A gang's class is the first of these that one of its members ended with."""


def gang_class(codes: list[int]) -> ExitClass:
    """The class of a gang whose members ended with ``codes`` (a code outside contract 7 counts as Transient)."""
    return min((exit_class(code) for code in codes), key=GANG_ORDER.index, default=ExitClass.Done)


def exit_class(code: int) -> ExitClass:
    """The class of one exit code; what contract 7 does not name is Transient."""
    try:
        return ExitClass(code)
    except ValueError:
        return ExitClass.Transient


class KDError(Exception):
    """A failure with an exit class and one clear sentence: what, where, the value, and the remedy."""

    exit_class: ExitClass = ExitClass.Bug
    position: str = ""
    """Where it failed, if that can be said: `step 12`, `unit 3`. What fails there three times in a row is poison."""


class SettingsError(KDError):
    """The manifest, the runtime or a command-line flag asks for something that cannot be: the message names the field."""

    exit_class = ExitClass.BadSettings


class DataError(KDError):
    """The user's data are wrong: the message names file, line or row."""

    exit_class = ExitClass.BadData


class GateError(KDError):
    """A gate is not met."""

    exit_class = ExitClass.GateUnmet


class TeacherError(KDError):
    """The teacher cannot be reached, or did not come back within outageTimeoutSeconds."""

    exit_class = ExitClass.TeacherUnreachable
    received: bool = False
    """Since it last answered, the teacher got requests that it did not answer: they may be at fault. False: none reached it."""


class StorageError(KDError):
    """Object storage failed, beyond what retries bridge."""

    exit_class = ExitClass.Storage


class TransientError(KDError):
    """Something passing: a stall, a collective error, a store that changed under a reader. Planning again may help."""

    exit_class = ExitClass.Transient


class DeniedError(KDError):
    """Credentials are missing, wrong, or lack a right."""

    exit_class = ExitClass.Denied


class AcceleratorMemoryError(KDError):
    """An accelerator ran out of memory."""

    exit_class = ExitClass.AcceleratorOutOfMemory


class HostMemoryError(KDError):
    """The host ran out of memory."""

    exit_class = ExitClass.HostOutOfMemory


class PeerLostError(KDError):
    """Another rank of the gang is gone."""

    exit_class = ExitClass.PeerLost


class DrainedError(KDError):
    """The process was asked to stop and wrote a checkpoint first."""

    exit_class = ExitClass.Drained


def disk_full(error: BaseException) -> str | None:
    """One sentence where a disk of this machine is full (scratch, cache, run folder), whichever library says so; else None."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full and os.strerror(errno.ENOSPC) not in str(error):
        return None
    where = getattr(error, "filename", None) or os.environ.get("TMPDIR", "/tmp")
    return (
        f"{where}: the disk is full; free space there, or set TMPDIR (scratch) or KD_CACHE_DIR (cache) to another disk"
    )


def classify(error: BaseException) -> ExitClass:
    """The exit class of an exception: the one place where exceptions become exit codes."""
    if isinstance(error, KDError):
        return error.exit_class
    if isinstance(error, MemoryError):
        return ExitClass.HostOutOfMemory
    if isinstance(error, KeyboardInterrupt):
        return ExitClass.Killed
    if disk_full(error):
        return ExitClass.Storage
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return ExitClass.AcceleratorOutOfMemory
    return ExitClass.Bug
