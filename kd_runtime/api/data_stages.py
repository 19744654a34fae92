"""Bodies of the stages that make models and data before training: prepare, synthesize, generate, capture."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kd_runtime.api.classes import Keyed
from kd_runtime.api.model import Model, Remedy, Rule, Seed, exactly_one


class PruneBy(StrEnum):
    """How the layers that stay are chosen."""

    BlockInfluence = "BlockInfluence"
    Uniform = "Uniform"


class Prune(Model):
    """Leaves out whole layers of the student."""

    keep_layers: Annotated[int, Field(ge=1, le=1024), Keyed]
    """Layers that stay."""
    by: Annotated[PruneBy, Keyed] = PruneBy.BlockInfluence
    """BlockInfluence drops the layers that change their input least (1 - cosine); Uniform spaces evenly."""
    calibration_rows: Annotated[int, Field(ge=1, le=65_536), Keyed] = 64
    """Rows of the dataset on which block influence is measured."""


class RandomInit(Model):
    """A student of the same family with random weights; what is absent stays as in the student's configuration."""

    layers: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, Keyed] = None
    """Layers."""
    hidden_size: Annotated[Annotated[int, Field(ge=8, le=131_072)] | None, Keyed] = None
    """Width of the residual stream."""
    intermediate_size: Annotated[Annotated[int, Field(ge=8, le=1_048_576)] | None, Keyed] = None
    """Width of the feed-forward layers."""
    attention_heads: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, Keyed] = None
    """Query heads."""
    key_value_heads: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, Keyed] = None
    """Key and value heads."""
    seed: Annotated[Seed, Keyed] = 0
    """Draws the weights."""


class Prepare(Model):
    """Makes the model that training starts from."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one("prune", "random"),)
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("prune", "random"),)

    prune: Prune | None = None
    """Leave out layers."""
    random: RandomInit | None = None
    """Draw new weights."""


class Operator(Model):
    """One step of a synthesis."""

    type: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$"), Keyed]
    """Name of the operator, such as Expand."""
    params: Annotated[dict[str, Any], Keyed] = Field(default_factory=dict)
    """The operator's own settings."""


class Synthesize(Model):
    """Makes new prompts from given ones."""

    operators: Annotated[tuple[Operator, ...], Field(min_length=1, max_length=16)]
    """Applied in order."""


class Sampling(Model):
    """How the teacher draws an answer."""

    temperature: Annotated[float, Field(ge=0, le=10), Keyed] = 0.7
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1), Keyed] = 0.95
    """Draws from the likeliest tokens that together have this mass."""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576), Keyed] = 1024
    """A longer answer is cut off, and counted as truncated."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=8), Keyed] = ()
    """An answer ends before any of these."""
    seed: Annotated[Seed, Keyed] = 0
    """Each request's own seed is a hash of this, the row's key and the sample's number."""


class Generate(Model):
    """Asks the teacher for answers."""

    samples_per_prompt: Annotated[int, Field(ge=1, le=1024), Keyed] = 1
    """Answers to each prompt."""
    sampling: Sampling = Sampling()
    """How answers are drawn."""
    system_prompt: Annotated[Annotated[str, Field(min_length=1, max_length=16_384)] | None, Keyed] = None
    """A system turn that the teacher sees and the student does not."""
    keep_truncated: Annotated[bool, Keyed] = False
    """Train on answers that were cut off, too."""


class Profile(StrEnum):
    """What is stored of the teacher's distribution at each position."""

    Exact = "Exact"
    Compact = "Compact"
    Unbiased = "Unbiased"
    Label = "Label"


class Capture(Model):
    """Asks the teacher to score rows: its logits."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.profile) || self.profile != 'Unbiased' || (has(self.tailDraws) && 0 < self.tailDraws)",
            "profile Unbiased draws from the tail; set tailDraws to 1 or more",
            "tailDraws",
        ),
        Rule(
            "!has(self.profile) || self.profile != 'Unbiased' || !has(self.temperatures) || size(self.temperatures) == 1",
            "profile Unbiased has exactly one temperature; keep one",
            "temperatures",
        ),
        Rule(
            "!has(self.tailDraws) || self.tailDraws == 0 || (has(self.profile) && self.profile == 'Unbiased')",
            "only profile Unbiased draws from the tail; use profile Unbiased or tailDraws 0",
            "tailDraws",
        ),
        Rule(
            "!has(self.profile) || self.profile != 'Label' || !has(self.temperatures)"
            " || self.temperatures.all(t, t == 1.0)",
            "profile Label stores no distribution, so it has no temperatures; leave them out",
            "temperatures",
        ),
    )

    profile: Annotated[Profile, Keyed] = Profile.Exact
    """Exact stores logprobs as they are; Compact quantises; Unbiased adds draws from the tail; Label stores the label's alone."""
    top_k: Annotated[int, Field(ge=1, le=256), Remedy("choose topK from 1 to 256"), Keyed] = 32
    """Tokens whose logprob is stored at each position; the rest is one tail bucket."""
    tail_draws: Annotated[int, Field(ge=0, le=64), Keyed] = 0
    """Draws from the tail at each position (Unbiased)."""
    temperatures: Annotated[
        tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1, max_length=8), Keyed
    ] = (1.0,)
    """Temperatures at which training may use the logits; others than 1 need engine Transformers."""
    entropy: Annotated[bool, Keyed] = False
    """Store the entropy of the whole distribution; needs engine Transformers. Unbiased always does."""
