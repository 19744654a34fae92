"""Teachers: hosted by the job, or reached at somebody else's endpoint."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kd_runtime.api.classes import Keyed, Recorded, Structural, Unkeyed
from kd_runtime.api.model import (
    HTTPURL,
    RESERVED_NAMES,
    Model,
    ModelSource,
    Rule,
    Seconds,
    SecretReference,
    StageName,
    exactly_one,
)

SCORE_PATH = "/kd/v1/score"
"""The score route of protocol KD: POST scores rows; GET says which tokenizer the teacher has."""


class Engine(StrEnum):
    """What runs a hosted teacher."""

    VLLM = "VLLM"
    Transformers = "Transformers"


class Dtype(StrEnum):
    """The number format in which a hosted teacher computes; there is no `auto`, since the key names it."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Quantization(StrEnum):
    """How a hosted teacher's weights are quantised."""

    AWQ = "AWQ"
    GPTQ = "GPTQ"
    FP8 = "FP8"
    BitsAndBytes = "BitsAndBytes"
    CompressedTensors = "CompressedTensors"


class Protocol(StrEnum):
    """What an external teacher speaks: the OpenAI API, or that and the score route."""

    OpenAI = "OpenAI"
    KD = "KD"


class Parallelism(Model):
    """How one replica of a hosted teacher is spread over GPUs."""

    tensor: Annotated[int, Field(ge=1, le=64), Recorded] = 1
    """Tensor-parallel ranks."""
    pipeline: Annotated[int, Field(ge=1, le=64), Recorded] = 1
    """Pipeline-parallel ranks."""


class Serving(Model):
    """How the serving engine uses its machine; other engine flags come from the runtime alone."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), Unkeyed] = 0.9
    """Share of the accelerator's memory that the engine may use (of the host's, on a CPU)."""
    max_num_seqs: Annotated[int, Field(ge=1, le=4096), Unkeyed] = 256
    """Sequences that are answered at the same time."""
    max_num_batched_tokens: Annotated[int, Field(ge=64, le=1_048_576), Unkeyed] = 4096
    """Tokens of one forward pass; it bounds the memory of a full-vocabulary softmax."""
    enforce_eager: Annotated[bool, Unkeyed] = False
    """Skip graph capture: a faster start, slower answers."""


class HostedTeacher(Model):
    """A teacher that the job starts, asks and stops."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.engine) || self.engine == 'VLLM' || !has(self.quantization)",
            "the Transformers engine serves no quantised weights; use engine VLLM or leave quantization out",
            "quantization",
        ),
    )

    model: ModelSource
    """The teacher's weights, tokenizer and configuration."""
    engine: Annotated[Engine, Keyed] = Engine.VLLM
    """What runs the model; Transformers sees whole distributions and is slow."""
    dtype: Annotated[Dtype, Keyed] = Dtype.bfloat16
    """Number format of the computation."""
    quantization: Annotated[Quantization | None, Keyed] = None
    """How the weights are quantised; absent where they are not."""
    max_model_len: Annotated[Annotated[int, Field(ge=16, le=10_485_760)] | None, Keyed] = None
    """Tokens of prompt and answer together; absent takes the model's own limit."""
    replicas: Annotated[int, Field(ge=1, le=256), Unkeyed] = 1
    """Servers of this teacher."""
    gpus_per_replica: Annotated[int, Field(ge=0, le=64), Unkeyed] = 0
    """GPUs of each replica."""
    parallelism: Parallelism = Parallelism()
    """How a replica is spread over its GPUs."""
    serving: Serving = Serving()
    """How the engine uses its machine."""
    startup_timeout_seconds: Annotated[Seconds, Unkeyed] = 3600
    """How long the teacher may take, from the start of its container, until it has answered a first prompt."""
    outage_timeout_seconds: Annotated[Seconds, Unkeyed] = 600
    """How long workers wait for a teacher that died before they give up (exit 69)."""


class Limits(Model):
    """How fast an external teacher may be asked: of the whole stage, each worker takes its share."""

    requests_per_minute: Annotated[Annotated[int, Field(ge=1, le=10_000_000)] | None, Unkeyed] = None
    """Requests a minute; absent is no limit."""
    tokens_per_minute: Annotated[Annotated[int, Field(ge=1, le=2_000_000_000)] | None, Unkeyed] = None
    """Prompt and answer tokens a minute; absent is no limit."""
    max_in_flight: Annotated[int, Field(ge=1, le=65_536), Unkeyed] = 64
    """Requests that wait for an answer at the same time."""


class ExternalTeacher(Model):
    """A teacher that somebody else serves."""

    base_url: Annotated[HTTPURL, Keyed]
    """Address of the API, up to and with /v1."""
    protocol: Annotated[Protocol, Keyed] = Protocol.OpenAI
    """OpenAI answers prompts; KD also scores rows, for logits."""
    model: Annotated[str, Field(min_length=1, max_length=256), Keyed]
    """The model's name at that endpoint."""
    revision: Annotated[Annotated[str, Field(min_length=1, max_length=128)] | None, Keyed] = None
    """A version that you declare, since the endpoint tells none; changing it asks everything again."""
    api_key_secret_ref: SecretReference | None = None
    """The API key."""
    limits: Limits = Limits()
    """How fast the endpoint may be asked."""
    outage_timeout_seconds: Annotated[Seconds, Unkeyed] = 600
    """How long workers wait for an endpoint that is away before they give up (exit 69)."""


class Teacher(Model):
    """The teacher that every asking stage asks."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one("hosted", "external"),)
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("hosted", "external"),)

    hosted: HostedTeacher | None = None
    """Started, asked and stopped by the job."""
    external: ExternalTeacher | None = None
    """Served by somebody else."""


class NamedTeacher(Teacher):
    """One of several teachers."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *Teacher.rules,
        Rule(f"!self.name.matches('^({RESERVED_NAMES})$')", "this name is reserved; choose another", "name"),
    )

    name: Annotated[StageName, Structural]
    """How stages refer to this teacher."""
