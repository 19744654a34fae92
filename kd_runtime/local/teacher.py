"""The teacher of a local run: one `kd teacher serve` process, alive for just the stages that ask it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import httpx

from kd_runtime.api.failures import SettingsError, TeacherError, exit_class
from kd_runtime.api.job import Artifacts
from kd_runtime.telemetry.processes import end_tree, free_port, spawn

STOP_SECONDS = 20.0
MAX_STARTS = 3


class LocalTeacher:
    """A hosted teacher on a loopback port, with a key of its own; started again if it dies."""

    def __init__(self, name: str, command: list[str], log: Path, startup_seconds: float):
        self.name, self._command, self._log = name, command, log
        self._startup_seconds = startup_seconds
        self.key = secrets.token_urlsafe(24)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def start(self) -> None:
        """Start the process; `wait` tells when it is ready."""
        self._starts += 1
        env = {**os.environ, "KD_TEACHER_KEY": self.key}
        self._process = spawn([*self._command, "--port", str(self.port)], env=env, log=self._log)

    def wait(self) -> float:
        """Seconds until it answered.

        Raises:
            TeacherError: it did not within startupTimeoutSeconds. SettingsError: it ended; the message holds its last line.
        """
        started = time.monotonic()
        while time.monotonic() - started < self._startup_seconds:
            self._raise_if_ended()
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return time.monotonic() - started
            except httpx.HTTPError:
                pass
            time.sleep(0.25)
        raise TeacherError(
            f"teacher {self.name}: not ready after {self._startup_seconds:.0f} s (startupTimeoutSeconds); raise it, or see {self._log}"
        )

    def _raise_if_ended(self) -> None:
        code = self._process.poll() if self._process else None
        if code is None:
            return
        raise SettingsError(
            f"teacher {self.name}: ended with code {code} ({exit_class(code).name}) before it was ready: "
            f"{last_line(self._log)}; see {self._log}"
        )

    def revive(self) -> bool:
        """Start it again if it has died; True if so. Gives up (TeacherError) after three starts."""
        if self._process is None or self._process.poll() is None:
            return False
        if self._starts >= MAX_STARTS:
            raise TeacherError(
                f"teacher {self.name}: died {self._starts} times: {last_line(self._log)}; see {self._log}"
            )
        self.start()
        return True

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to it and all that it started."""
        if self._process is not None:
            end_tree(self._process, STOP_SECONDS)
            self._process = None


def teacher_command(store: str, plan: str, name: str, cache: Path, artifacts: Artifacts) -> list[str]:
    """The command line of a teacher of a plan."""
    said = {"--endpoint": artifacts.endpoint, "--region": artifacts.region}
    return [
        sys.executable, "-m", "kd_runtime.cli.main", "teacher", "serve", "--store", store, "--plan", plan,
        "--teacher", name, "--cache", str(cache), *(word for flag, value in said.items() if value for word in (flag, value)),
    ]  # fmt: skip


def last_line(log: Path, since: int = 0) -> str:
    """The last line of a log, from byte ``since`` on, that says something; at most 300 characters."""
    try:
        with log.open("rb") as file:
            file.seek(since)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no output"
    return lines[-1][:300] if lines else "no output"
