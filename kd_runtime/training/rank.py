"""One rank of a training gang: `python -m kd_runtime.training.rank TASK`. Says how it ended in its result file and exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from kd_runtime.api.failures import DrainedError, ExitClass, KDError, classify
from kd_runtime.api.result import StageResult
from kd_runtime.telemetry.processes import die_with_parent
from kd_runtime.training.memory import accelerator_peak_bytes, peak_bytes, resident_bytes
from kd_runtime.training.signs import Signs
from kd_runtime.training.task import RankTask


@dataclass
class Stop:
    """Whether this rank got SIGTERM."""

    asked: bool = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def main(arguments: list[str]) -> int:
    """Run one rank; the exit code."""
    die_with_parent()
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        task = RankTask.read(Path(arguments[0]))
        signs = Signs(task.out, int(os.environ["RANK"]))
        signs.give("loading libraries")
        _environment(task)
        Rank(task, signs, stop).run()
        result = StageResult(exit_class=ExitClass.Done)
    except Exception as error:
        traceback.print_exc()
        result = _failure(error)
    result.write()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(result.exit_class)


def _environment(task: RankTask) -> None:
    """What libraries read when they are first imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(task.threads))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        if os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(task.threads)
    # Asked to warn only, attention's backward pass would take the algorithm that adds up in any order.
    torch.use_deterministic_algorithms(True, warn_only=not (task.exact and torch.cuda.is_available()))
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _failure(error: Exception) -> StageResult:
    from kd_runtime.training.faults import recognised

    error = recognised(error)
    said = str(error) if isinstance(error, KDError) else f"{type(error).__name__}: {error}"
    return StageResult(exit_class=classify(error), message=said)


@dataclass
class Rank:
    """The life of a rank: join, load, train, save."""

    task: RankTask
    signs: Signs
    stop: Stop
    log: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes: resident before the student is loaded, then the peak at the end of each phase; a card's after training."""

    def run(self) -> None:
        """Raises DrainedError after a checkpoint that SIGTERM asked for."""
        from kd_runtime.training.engine import init_distributed

        init_distributed()
        self.memory["libraries"] = resident_bytes()
        self._agree()
        self.signs.give("loading the student")
        trainer = self._trainer()
        trainer.student.check_logits(trainer.place.device)
        if self.task.train.packing:
            trainer.student.check_packing(trainer.place.device)
        self.memory["loaded"] = peak_bytes()
        if self.task.rehearsal:
            self._rehearse(trainer)
            return
        start = self._resume(trainer)
        loaded = time.perf_counter()
        drained = self._steps(trainer, start)
        if drained:
            raise DrainedError(f"drained after step {self.log[-1]['step']} of {trainer.order.steps}, at a checkpoint")
        trained = time.perf_counter()
        self.memory |= {"trained": peak_bytes(), "accelerator": accelerator_peak_bytes()}
        self.signs.give("saving the student", step=trainer.order.steps, steps=trainer.order.steps)
        self._export(trainer)
        self.memory["saved"] = peak_bytes()
        self._write_timing(trainer, {"load": loaded - self.started, "train": trained - loaded})

    def _agree(self) -> None:
        from kd_runtime.training.agreement import agree
        from kd_runtime.training.assembly import place

        place()  # sets the device
        agree(self.task)

    def _trainer(self) -> Any:
        from kd_runtime.training.assembly import assemble

        return assemble(self.task)

    def _rehearse(self, trainer: Any) -> None:
        from kd_runtime.training.rehearsal import rehearse

        rehearse(trainer)
        self.signs.give("rehearsed", step=1, steps=1)

    def _resume(self, trainer: Any) -> int:
        from kd_runtime.training.saving import restore

        if self.task.resume is None:
            return 0
        self.log = restore(trainer, self.task)
        self.signs.give("resumed", step=self.task.resume_step, steps=trainer.order.steps)
        return self.task.resume_step

    def _steps(self, trainer: Any, start: int) -> bool:
        from kd_runtime.training.loop import StepOutcome, Wishes, run_steps
        from kd_runtime.training.saving import Saver

        saver = Saver(trainer, self.task, lambda: self.signs.give("saving a checkpoint"))

        def wishes(number: int) -> Wishes:
            return Wishes(self.stop.asked, saver.due(number + 1))

        def logged(outcome: StepOutcome) -> None:
            self.log.append(outcome.record)
            self.tokens += outcome.totals.tokens
            self.signs.give(
                "training",
                step=int(outcome.record["step"]),
                steps=trainer.order.steps,
                tokens=self.tokens,
                loss=float(outcome.record["loss"]),
            )

        def save(done: int, _: object) -> None:
            self.signs.saved = saver.save(done, self.log)
            self.signs.give("saved a checkpoint", step=done, steps=trainer.order.steps, tokens=self.tokens)

        return run_steps(trainer, start, wishes, save, logged)

    def _export(self, trainer: Any) -> None:
        from kd_runtime.training.engine import gathered_state
        from kd_runtime.training.export import save_student
        from kd_runtime.training.saving import encoded_log

        rank = trainer.place.rank
        state = gathered_state(trainer.student.model, self.task.train.deepspeed.zero_stage, rank)
        if rank != 0:
            return
        shutil.rmtree(self.task.out / "model", ignore_errors=True)
        task = self.task
        save_student(state, task.train, task.model, task.out, trust_remote_code=task.trust_remote_code)
        (self.task.out / "train.jsonl").write_bytes(encoded_log(self.log))

    def _write_timing(self, trainer: Any, phases: dict[str, float]) -> None:
        if trainer.place.rank == 0:
            facts = {"tokens": self.tokens, "world": trainer.place.world, "threads": self.task.threads}
            timing = {**facts, "memory": self.memory, "seconds": {**phases, **trainer.seconds}}
            (self.task.out / "timing.json").write_text(json.dumps(timing, indent=1))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Destructors of process groups and thread pools have nothing left to do, and may hang where a peer is gone.
    os._exit(code)
