"""Places where tests let the operator die: before and after everything that it writes. Inert unless $KD_FAILPOINT is set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

Failpoint = Callable[[str], None]

VARIABLE = "KD_FAILPOINT"


def inert(name: str) -> None:
    """The failpoint of every real operator."""


def from_environment(environment: Mapping[str, str]) -> Failpoint:
    """What `$KD_FAILPOINT` says: ``NAME:N`` kills the process (-9) the N-th time that NAME is passed; ``*`` is every name."""
    said = environment.get(VARIABLE)
    if not said:
        return inert
    wanted, _, number = said.rpartition(":")
    left = int(number)

    def passed(name: str) -> None:
        nonlocal left
        left -= wanted in ("*", name)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return passed
