"""What a gang's parent tells its ranks: one JSON file, the same for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kd_runtime.api.job import Precision, Train
from kd_runtime.training.checkpoints import Trajectory


class MicroBatchBound(BaseModel):
    """Rows or tokens of one forward pass; one of them."""

    model_config = ConfigDict(frozen=True)

    rows: int | None = None
    tokens: int | None = None


class StoreAddress(BaseModel):
    """How a rank opens the store."""

    model_config = ConfigDict(frozen=True)

    uri: str
    endpoint: str | None = None
    region: str | None = None


class RankTask(BaseModel):
    """Everything that a rank needs besides its place (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT)."""

    model_config = ConfigDict(frozen=True)

    train: Train
    model: Path
    """The student's Hugging Face directory."""
    trust_remote_code: bool = False
    vocabulary: int
    """The tokenizer's true size V."""
    rows: tuple[Path, ...]
    """Parquet files of the rows artifact, in order."""
    selection: Path
    """What `Selection.save` wrote."""
    logits: tuple[Path, ...] = ()
    logits_spec: dict[str, str] | None = None
    """`ShardSpec.metadata`; None without logits."""
    micro_batch: MicroBatchBound
    out: Path
    """Where rank 0 writes model/, log/ and summary.json."""
    store: StoreAddress
    work_prefix: str
    """Where checkpoints lie in the store: work/<key>/<writer>/."""
    trajectory: Trajectory
    """What its checkpoints say of this run."""
    resume: Path | None = None
    """A downloaded checkpoint's folder."""
    resume_step: int = 0
    resume_from: str = ""
    """Which checkpoint ``resume`` is: its writer and step."""
    universal: bool = False
    """``resume`` is in DeepSpeed's universal form, which any number of ranks loads."""
    rehearsal: bool = False
    """Take one step on the longest micro-batch, write nothing, end."""
    exact: bool = True
    """On an accelerator: only operations that give the same bits each time, so that an interrupted run ends in those of an
    undisturbed one. On CPUs they do without being asked."""
    threads: int = 1

    @property
    def start(self) -> dict[str, Any]:
        """What all ranks must begin with, whichever node's parent wrote their task; named as people are told of it."""
        return {
            "train step first": self.rehearsal,
            "step": self.resume_step,
            "checkpoint": self.resume_from or "none",
            "micro-batch": self.micro_batch.model_dump(exclude_none=True),
            "steps in all": self.trajectory.steps,
            **{f"input {role}": ref.content_digest[:32] for role, ref in sorted(self.trajectory.inputs.items())},
        }

    def write(self, path: Path) -> None:
        """Store for the ranks."""
        path.write_text(self.model_dump_json(by_alias=True, exclude_none=True))

    @classmethod
    def read(cls, path: Path) -> RankTask:
        """Read what `write` stored."""
        return cls.model_validate_json(path.read_text())


def zero_stage(train: Train) -> int:
    """The stage that DeepSpeed runs: in bf16 at least 1.

    Its unsharded bf16 optimizer adds gradients up in bf16, and learns worse (measured on the tiny models); stage 1 has
    fp32 sums and the same result as the others.
    """
    stage = train.deepspeed.zero_stage
    return max(stage, 1) if train.precision is Precision.bf16 else stage
