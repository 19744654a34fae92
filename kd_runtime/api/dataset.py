"""The dataset, which an implicit first stage called `dataset` reads (ingest)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kd_runtime.api.classes import Keyed, Unkeyed
from kd_runtime.api.model import Address, Model, Ratio, Rule, SecretReference, Seed, exactly_one


class DatasetFormat(StrEnum):
    """How a dataset's files are written."""

    JSONL = "JSONL"
    JSON = "JSON"
    Parquet = "Parquet"
    CSV = "CSV"
    HuggingFace = "HuggingFace"


class LossOn(StrEnum):
    """Which tokens of a conversation are targets."""

    Response = "Response"
    LastTurn = "LastTurn"
    All = "All"


class Reasoning(StrEnum):
    """What happens to the reasoning part of a response."""

    Keep = "Keep"
    Strip = "Strip"


Column = Annotated[str, Field(min_length=1, max_length=128)]


class DatasetFields(Model):
    """Which columns hold what."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("prompt", "messages"),
        Rule(
            "!has(self.system) || has(self.prompt)",
            "a system column goes with a prompt column; put system turns into messages",
            "system",
        ),
    )
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt", "messages"),)

    prompt: Annotated[Column | None, Keyed] = None
    """Column with the user's turn."""
    response: Annotated[Column | None, Keyed] = None
    """Column with the response: trained on where no stage generates, a reference for exact match where one does."""
    system: Annotated[Column | None, Keyed] = None
    """Column with the system turn."""
    messages: Annotated[Column | None, Keyed] = None
    """Column with a whole conversation, a list of {role, content}."""


class Holdout(Model):
    """Rows that are kept from training, chosen by a hash of the prompt, so that no prompt is on both sides."""

    fraction: Annotated[float, Field(ge=0, le=0.9), Keyed] = 0.05
    """Share of the prompts that are held out."""
    seed: Annotated[Seed, Keyed] = 0
    """Chooses which."""


class Dataset(Model):
    """What is learned from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.uri.matches('^hf://') || has(self.revision)",
            "a dataset of the Hugging Face Hub needs a revision; add the commit",
            "revision",
        ),
    )

    uri: Annotated[Address, Unkeyed]
    """A file, a prefix that ends in /, or hf://datasets/OWNER/NAME with a revision. What is hidden below it is not read."""
    revision: Annotated[Annotated[str, Field(min_length=1, max_length=128)] | None, Unkeyed] = None
    """Commit, tag or branch on the Hub; it is resolved to a commit when the job is planned."""
    format: Annotated[DatasetFormat, Keyed]
    """How the files are written."""
    fields: DatasetFields
    """Which columns hold what."""
    split: Annotated[Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[-_.a-zA-Z0-9]+$")] | None, Keyed] = (
        None
    )
    """Split of a HuggingFace dataset; absent takes `train`."""
    secret_ref: SecretReference | None = None
    """The Hub's token."""
    template: Annotated[Address | None, Unkeyed] = None
    """A Jinja file to render conversations with; absent takes the student's own chat template."""
    max_tokens: Annotated[int, Field(ge=8, le=10_485_760), Keyed] = 8192
    """Longer rows are rejected (TooLong)."""
    loss_on: Annotated[LossOn, Keyed] = LossOn.Response
    """Which tokens are targets."""
    reasoning: Annotated[Reasoning, Keyed] = Reasoning.Keep
    """Whether the reasoning part of a response stays."""
    holdout: Holdout = Holdout()
    """Rows kept from training, for evaluation."""
    max_rejected_ratio: Annotated[Ratio, Unkeyed] = 0.02
    """A stage that rejects a larger share of its rows fails."""
