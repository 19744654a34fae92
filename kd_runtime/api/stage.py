"""A stage of a job: its name, what it reads, and exactly one body."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kd_runtime.api.classes import Structural, Unkeyed
from kd_runtime.api.data_stages import Capture, Generate, Prepare, Synthesize
from kd_runtime.api.model import (
    RESERVED_NAMES,
    Model,
    Rule,
    Seconds,
    StageName,
    StageReference,
    exactly_one,
)
from kd_runtime.api.operation import Resources
from kd_runtime.api.outcome_stages import Compress, Evaluate, Publish
from kd_runtime.api.train import Train, TrainMethod

StageBody = Prepare | Synthesize | Generate | Capture | Train | Compress | Evaluate | Publish
BODIES: tuple[str, ...] = (
    "prepare",
    "synthesize",
    "generate",
    "capture",
    "train",
    "compress",
    "evaluate",
    "publish",
)
"""The stage types that a manifest may name."""


class CacheMode(StrEnum):
    """Whether an artifact that is there is used again."""

    Auto = "Auto"
    Never = "Never"


class StageInputs(Model):
    """Names of the earlier stages that a stage reads, where the default is not meant."""

    rows: Annotated[StageReference | None, Structural] = None
    """Rows: of generate, synthesize, or `dataset`."""
    logits: Annotated[StageReference | None, Structural] = None
    """Logits: of capture."""
    model: Annotated[StageReference | None, Structural] = None
    """A model: of prepare, train or compress."""


class Stage(Model):
    """One stage: a name, what it reads, and exactly one body."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one(*BODIES),
        Rule(f"!self.name.matches('^({RESERVED_NAMES})$')", "is a reserved name; choose another", "name"),
        Rule(
            "!has(self.workers) || self.workers == 1 || has(self.generate) || has(self.capture)",
            "only generate and capture share their work; remove workers",
            "workers",
        ),
        Rule(
            "!has(self.resources) || !has(self.resources.nodes) || self.resources.nodes == 1 || has(self.train)",
            "only train runs on several nodes; remove nodes",
            "resources.nodes",
        ),
        Rule(
            "!has(self.teacher) || has(self.generate) || has(self.capture) || has(self.synthesize)"
            " || (has(self.train) && self.train.method == 'OnPolicyKD')",
            "this stage asks no teacher; remove the field",
            "teacher",
        ),
        Rule(
            "!has(self.inputs) || !has(self.inputs.rows) || !has(self.publish)",
            "publish reads no rows; remove the field",
            "inputs.rows",
        ),
        Rule(
            "!has(self.inputs) || !has(self.inputs.logits) || has(self.train) || has(self.evaluate)",
            "only train and evaluate read logits; remove the field",
            "inputs.logits",
        ),
        Rule(
            "!has(self.inputs) || !has(self.inputs.model)"
            " || !(has(self.synthesize) || has(self.generate) || has(self.capture))",
            "this stage reads no model of a stage; remove the field (a teacher is named by `teacher`)",
            "inputs.model",
        ),
    )
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (BODIES,)

    name: Annotated[StageName, Structural]
    """A lower-case word of at most 16 letters and digits."""
    inputs: StageInputs = StageInputs()
    """Default: the newest earlier stage that makes what is read, else the spec's."""
    teacher: Annotated[StageName | None, Structural] = None
    """Which of `teachers` is asked."""
    workers: Annotated[int, Field(ge=1, le=1024), Unkeyed] = 1
    """Processes that share the work; generate and capture only."""
    resources: Resources = Resources()
    """What the stage's pods get."""
    timeout_seconds: Annotated[Seconds | None, Unkeyed] = None
    """A longer attempt is ended."""
    stall_timeout_seconds: Annotated[Seconds, Unkeyed] = 1800
    """An attempt without progress for so long is ended (exit 75)."""
    cache: Annotated[CacheMode, Structural] = CacheMode.Auto
    """Never makes the artifact anew for each job: the job's uid enters the key."""
    prepare: Prepare | None = None
    """Makes the model that training starts from."""
    synthesize: Synthesize | None = None
    """Makes new prompts."""
    generate: Generate | None = None
    """Asks the teacher for answers."""
    capture: Capture | None = None
    """Asks the teacher for logits."""
    train: Train | None = None
    """Trains the student."""
    compress: Compress | None = None
    """Quantises a model."""
    evaluate: Evaluate | None = None
    """Examines a model."""
    publish: Publish | None = None
    """Copies a model to where it is used."""

    @property
    def bodies(self) -> tuple[str, ...]:
        """Names of the bodies that are set: one, in a valid stage."""
        return tuple(name for name in BODIES if getattr(self, name) is not None)

    @property
    def type(self) -> str:
        """Which body is set: `prepare`, `generate`, …"""
        return self.bodies[0]

    @property
    def body(self) -> StageBody:
        """The body that is set."""
        body: StageBody = getattr(self, self.type)
        return body

    @property
    def asks_teacher(self) -> bool:
        """True where the stage needs a running teacher."""
        if self.train is not None:
            return self.train.method is TrainMethod.OnPolicyKD
        return not {"synthesize", "generate", "capture"}.isdisjoint(self.bodies)
