"""Bodies of the stages that follow training: compress, evaluate, publish."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kd_runtime.api.classes import Keyed, Unkeyed
from kd_runtime.api.model import Model


class CompressMethod(StrEnum):
    """How weights are quantised."""

    GPTQ = "GPTQ"
    AWQ = "AWQ"
    FP8 = "FP8"


class Compress(Model):
    """Quantises a model."""

    method: Annotated[CompressMethod, Keyed]
    """How."""
    bits: Annotated[int, Field(ge=2, le=8), Keyed] = 4
    """Bits of a weight."""


class Suite(Model):
    """One set of questions for the student."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][-_A-Za-z0-9]*$"), Keyed]
    """HeldOut: the rows kept from training."""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576), Keyed] = 256
    """Tokens of an answer at most."""


class GateMetric(StrEnum):
    """What a gate decides on."""

    recoveredGap = "recoveredGap"
    """(baseline - student) / (baseline - teacher) of a measure; unmet where the teacher is not better than the baseline."""
    value = "value"
    """The student's own value of a measure."""
    change = "change"
    """The student's value minus the baseline's."""


class Measure(StrEnum):
    """What is measured on held-out rows."""

    KL = "KL"
    """Divergence from the teacher a position, in nats; needs logits."""
    Agreement = "Agreement"
    """Share of positions at which student and teacher have the same likeliest token; needs logits."""
    CrossEntropy = "CrossEntropy"
    """Mean negative log-likelihood of the responses' tokens, in nats."""
    Perplexity = "Perplexity"
    """exp of the cross-entropy."""
    ExactMatch = "ExactMatch"
    """Share of answers equal to a reference; needs a response column."""
    Ended = "Ended"
    """Share of answers that end by themselves."""
    LongestRepeat = "LongestRepeat"
    """Mean tokens of the longest stretch in which one unit follows itself back to back."""
    AnswerTokens = "AnswerTokens"
    """Mean tokens of an answer."""


class GateOp(StrEnum):
    """How the bound is compared with the value."""

    AtLeast = "AtLeast"
    AtMost = "AtMost"


class Gate(Model):
    """A condition on the student: it passes if the one-sided bootstrap bound over prompts does."""

    metric: Annotated[GateMetric, Unkeyed]
    """What the gate decides on."""
    of: Annotated[Measure, Unkeyed]
    """Of which measure."""
    op: Annotated[GateOp, Unkeyed]
    """How it is compared."""
    value: Annotated[float, Field(ge=-1e9, le=1e9), Unkeyed]
    """With what."""
    confidence: Annotated[float, Field(ge=0.5, lt=1), Unkeyed] = 0.95
    """Confidence of the one-sided bound."""


class Evaluate(Model):
    """Examines a model; asks no teacher."""

    suites: Annotated[tuple[Suite, ...], Field(min_length=1, max_length=16)] = (Suite(name="HeldOut"),)
    """What is asked."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=16)] = ()
    """What must hold for publishing."""


class Target(Model):
    """One place to publish to."""

    uri: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^((s3|pvc)://[^/].*|file://.+|[^:]+)$"), Unkeyed]
    """s3://BUCKET/PREFIX/, or (locally) file:// and relative paths."""


class Publish(Model):
    """Copies a model to where it is used, and moves a pointer there."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=8)]
    """Where to."""
    model_card: Annotated[bool, Keyed] = True
    """Write a README.md with lineage and scores beside the weights."""
    require_gates: Annotated[bool, Unkeyed] = True
    """Publish only if every gate of this very model passes."""
