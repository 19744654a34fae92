"""No process outlives its parent: a process group with a leader that kills it all once this process is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from kd_runtime.telemetry.processes import PARENT_VARIABLE

POLL_SECONDS = 0.2

_LEADER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.buffer.read()  # ends when the last writer, the process that holds the leash, is gone in whatever way
os.killpg(0, signal.SIGKILL)
"""


class Leash:
    """Runs one command in a process group of its own, and kills what is left of the group at its end.

    The group's leader is a tiny process that reads a pipe held by this one: if this process is gone (SIGKILL included),
    the pipe ends and the leader kills the group, grandchildren and itself included. The command joins the group before
    it executes, so there is no moment at which it could escape.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        leader = [sys.executable, "-I", "-S", "-c", _LEADER]
        self._leader = subprocess.Popen(leader, stdin=subprocess.PIPE, process_group=0)
        try:
            self._command = subprocess.Popen(command, env=dict(env), process_group=self._leader.pid)
        except BaseException:
            self._kill_group()
            raise

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._command.pid

    def poll(self) -> int | None:
        """The command's exit code (minus the signal), or None while it and the leader live.

        Without its leader the group would be unguarded, so the leader's death counts as the command's, by SIGKILL.
        """
        code = self._command.poll()
        if code is None and self._leader.poll() is not None:
            return -signal.SIGKILL
        return code

    def stop(self, grace_seconds: float) -> int:
        """Ask the command to end, kill the whole group after ``grace_seconds``; its exit code."""
        if self._command.poll() is None:
            self._command.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._command.wait(grace_seconds)
        self._kill_group()
        return self._command.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._leader.pid, signal.SIGKILL)
        self._leader.wait()


def when_orphaned(action: Callable[[], None]) -> None:
    """Call ``action``, in a thread of its own, once this process's parent is gone.

    The parent is who started this process ($KD_PARENT_PID, where it said so: it may be gone by now), else who is now.
    """
    expected = int(os.environ.get(PARENT_VARIABLE) or os.getppid())

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(POLL_SECONDS)
        action()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
