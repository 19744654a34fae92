"""The parent of a training gang: starts the ranks, hears their signs, passes signals on, and says how the gang ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from kd_runtime.api.failures import ExitClass, KDError, exit_class, gang_class
from kd_runtime.api.result import StageResult
from kd_runtime.telemetry.processes import end_tree, free_port, spawn
from kd_runtime.training.signs import Sign, read_sign

POLL_SECONDS = 0.1
PEER_SECONDS = 15.0
"""How long the other ranks may go on once one has failed: they notice, and end by themselves."""
GRACE_MARGIN_SECONDS = 20.0
"""A pod's grace is drainSeconds + 30; ten seconds of it are for the result."""
LOG_TAIL_BYTES = 6000


@dataclass(frozen=True)
class Placement:
    """Which ranks run here, and where all meet."""

    world: int
    first: int
    here: int
    address: str
    port: int

    @classmethod
    def of(cls, nodes: int, gpus_per_node: int, index: int, environ: Mapping[str, str]) -> Placement:
        """On a cluster (MASTER_ADDR is set) a node runs its own ranks; locally all run here.

        On CPUs each node is one rank.
        """
        each = max(1, gpus_per_node)
        if "MASTER_ADDR" in environ:
            port = int(environ.get("MASTER_PORT", "29500"))
            return cls(nodes * each, index * each, each, environ["MASTER_ADDR"], port)
        return cls(nodes * each, 0, nodes * each, "127.0.0.1", free_port())

    @property
    def leads(self) -> bool:
        """True where rank 0 runs here."""
        return self.first == 0


class GangError(KDError):
    """A gang did not end well; its class is the highest of its ranks', its position the step that was being taken."""

    def __init__(self, kind: ExitClass, message: str, position: str = ""):
        super().__init__(message)
        self.exit_class, self.position = kind, position


@dataclass
class Gang:
    """One run of all ranks of this node.

    ``heard`` is told rank 0's (or the first rank's) signs. Raises GangError from `run`.
    """

    task: Path
    out: Path
    placement: Placement
    threads: int
    stall_seconds: float | None
    drain_seconds: float
    heard: Callable[[Sign], None]
    drains: bool = True
    """False: SIGTERM ends the ranks at once (a rehearsal has nothing to save)."""
    _ranks: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _stopped_at: float | None = None
    _steps: int = 0
    """That are done, as far as was heard."""

    def run(self) -> None:
        """Start the ranks and wait for them. Must be called in the main thread."""
        self.out.mkdir(parents=True, exist_ok=True)
        with self._signals():
            try:
                self._start()
                self._watch()
            finally:
                killed = self._end()
        self._conclude(killed)

    def _start(self) -> None:
        for local in range(self.placement.here):
            rank = self.placement.first + local
            env = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(self.placement.world),
                "MASTER_ADDR": self.placement.address,
                "MASTER_PORT": str(self.placement.port),
                "OMP_NUM_THREADS": str(self.threads),
                "KD_RESULT_FILE": str(self._result_path(rank)),
            }
            command = [sys.executable, "-m", "kd_runtime.training.rank", str(self.task)]
            self._result_path(rank).unlink(missing_ok=True)  # of a gang that ran here before: this one may leave none
            self._ranks[rank] = spawn(command, env=env, log=self.out / f"rank-{rank}.log")

    def _watch(self) -> None:
        """Until every rank has ended, or has no right to go on. Raises GangError for a stall."""
        beats: dict[int, int] = {}
        last_sign = time.monotonic()
        failed_at: float | None = None
        while any(process.poll() is None for process in self._ranks.values()):
            now = time.monotonic()
            if self._hear(beats):
                last_sign = now
            if failed_at is None and any(process.poll() not in (None, 0) for process in self._ranks.values()):
                failed_at = now
            if failed_at is not None and now - failed_at > PEER_SECONDS:
                return
            if self._stopped_at is not None and now - self._stopped_at > self._patience():
                return
            if self.stall_seconds and now - last_sign > self.stall_seconds:
                raise GangError(
                    ExitClass.Transient,
                    f"train: no rank made progress for {self.stall_seconds:g} s (stallTimeoutSeconds), last "
                    f"{self._phases()}; ended, to be tried again",
                    self._position(),
                )
            time.sleep(POLL_SECONDS)
        self._hear(beats)

    def _hear(self, beats: dict[int, int]) -> bool:
        """Read the signs; True where any rank gave a new one."""
        news = False
        for rank in self._ranks:
            sign = read_sign(self.out, rank)
            if sign is not None and sign.beat != beats.get(rank):
                beats[rank] = sign.beat
                news = True
                self._steps = max(self._steps, sign.step if sign.phase == "training" else 0)
                if rank == self.placement.first:
                    self.heard(sign)
        return news

    def _phases(self) -> str:
        signs = {rank: read_sign(self.out, rank) for rank in self._ranks}
        return ", ".join(f"rank {rank}: {sign.phase if sign else 'starting'}" for rank, sign in signs.items())

    def _patience(self) -> float:
        return self.drain_seconds + GRACE_MARGIN_SECONDS if self.drains else 0.0

    def _end(self) -> set[int]:
        """Kill the ranks that still run, with all below them; which they were."""
        running = {rank for rank, process in self._ranks.items() if process.poll() is None}
        for rank in running:
            self._ranks[rank].kill()
            end_tree(self._ranks[rank], 0)
            self._ranks[rank].wait()
        return running

    def _conclude(self, killed: set[int]) -> None:
        """Raise GangError unless every rank ended with 0."""
        codes = {rank: process.returncode for rank, process in self._ranks.items() if rank not in killed}
        if not killed and all(code == 0 for code in codes.values()):
            return
        failed = {rank: code for rank, code in codes.items() if code != 0}
        if not failed:
            raise GangError(ExitClass.Killed, "train: ended by SIGTERM before a checkpoint; the last one is kept")
        kind = gang_class([code if code >= 0 else int(ExitClass.Transient) for code in failed.values()])
        rank = next(rank for rank, code in failed.items() if exit_class(code) is kind)
        if kind not in (ExitClass.Drained, ExitClass.Killed):
            self._show_log(rank)
        raise GangError(kind, self._said(rank, failed[rank]), self._position())

    def _position(self) -> str:
        """The step that was being taken; empty before the first was done."""
        return f"step {self._steps + 1}" if self._steps else ""

    def _said(self, rank: int, code: int) -> str:
        result = StageResult.read(self._result_path(rank))
        if result is not None and result.message:
            return result.message
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"train: rank {rank} {how} and left no result"

    def _show_log(self, rank: int) -> None:
        """The end of a failed rank's output, for whoever reads this process's."""
        path = self.out / f"rank-{rank}.log"
        if path.exists():
            tail = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            print(f"--- rank {rank} ---\n{tail}--- end of rank {rank} ---", file=sys.stderr, flush=True)

    def _result_path(self, rank: int) -> Path:
        return self.out / f"result-{rank}.json"

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are passed on to the ranks as SIGTERM while they run."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        for process in self._ranks.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
