"""What each stage will cost: rows, tokens, bytes, memory, seconds, before anything runs.

Counts come from the manifests of stages that are found; else from a sample of the dataset. Times are rules of thumb: floating
point operations over a sustained rate of the device (a few percent to a half of its peak, by kind of work).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from tokenizers import Tokenizer

from kd_runtime.api.job import Capture, DistillationJobSpec, HostedTeacher, Profile
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rows import prompt_split
from kd_runtime.planning.headers import ModelHeader
from kd_runtime.planning.memory import train_memory
from kd_runtime.planning.plan import Plan, PlannedStage
from kd_runtime.planning.resolve import teacher_named
from kd_runtime.planning.sources import Source, open_model, open_source

SAMPLE_BYTES = 1 << 18
ANSWERED_SHARE = 0.23
"""Mean length of an answer over maxTokens, where nothing is known yet: the quickstart's."""
ANSWER_BYTES = 65
"""Of a row that a teacher answered, beside its text: whose answer to which prompt it is, with which seed and end."""
REPORT_BYTES, ITEM_BYTES, TOKEN_CHARACTERS = 18_000, 1_200, 4.3
"""An evaluation's own, that of each prompt with the measures of both models, and a token's text: the quickstart's."""
TEMPLATE_TOKENS = 30
"""Tokens that a chat template adds to a prompt: SmolLM2's, with its default system prompt."""


@dataclass(frozen=True)
class Rates:
    """Sustained floating point operations a second of one device, by kind of work."""

    generate: float
    score: float
    train: float
    startup_seconds: float


CPU = Rates(generate=0.8e11, score=3.4e11, train=1.3e11, startup_seconds=18)
GPU = Rates(generate=4e13, score=3e14, train=3.5e14, startup_seconds=180)


@dataclass(frozen=True)
class StageEstimate:
    """One stage's cost: rows and tokens out, bytes written, peak bytes of memory (of one process group), seconds."""

    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    memory: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RowSample:
    """What a sample of the dataset says: rows in all, mean tokens of a prompt and of a response, the share held out."""

    rows: int
    prompt_tokens: float
    response_tokens: float
    held_share: float = 0.0


def estimate(
    plan: Plan, headers: Mapping[str, ModelHeader], manifests: Mapping[str, Manifest | None], sample: RowSample
) -> dict[str, StageEstimate]:
    """Estimates by stage name (pure). ``headers`` by model URI; ``manifests`` of the stages that are found."""
    estimator = _Estimator(plan, headers, sample)
    for stage in plan.stages:
        estimator.add(stage, manifests.get(stage.name))
    return estimator.done


def sample_dataset(plan: Plan) -> RowSample:
    """Read the head of the dataset's first file and its tokenizer; extrapolate by bytes.

    Raises:
        StorageError, DeniedError: what cannot be read.
    """
    external = plan.stage("dataset").externals["dataset"]
    s3 = {"endpoint": plan.spec.artifacts.endpoint, "region": plan.spec.artifacts.region}
    source = open_source(external.uri, revision=external.revision, **s3)
    first = max(external.files, key=lambda f: f.size)
    records, used = _head(source, first.path, first.size)
    if not records:
        return RowSample(0, 0.0, 0.0)
    total = sum(f.size for f in external.files)
    count = len(records) if used >= total else round(len(records) * total / max(used, 1))
    encode = _tokenizer(plan)
    fields = plan.spec.dataset.fields
    prompts = [_text(r.get(fields.prompt or "") or r.get(fields.messages or "")) for r in records]
    responses = [_text(r.get(fields.response or "")) for r in records]
    n, holdout = len(records), plan.spec.dataset.holdout
    held = sum(
        prompt_split([{"role": "user", "content": text}], holdout.fraction, holdout.seed) == "heldOut"
        for text in prompts
    )
    return RowSample(count, sum(map(encode, prompts)) / n + TEMPLATE_TOKENS, sum(map(encode, responses)) / n, held / n)


def _head(source: Source, path: str, size: int) -> tuple[list[dict[str, object]], int]:
    """Records from the head of a file, and the bytes that they stand for."""
    kind = PurePosixPath(path).suffix
    if kind == ".parquet":
        return _parquet_head(source, path, size)
    body = source.read(path, 0, min(size, SAMPLE_BYTES))
    if kind == ".json":
        return _json_head(source.read(path)), size
    lines = body.split(b"\n")
    if len(body) < size:
        lines = lines[:-1]
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # ingest names it
            continue
        if isinstance(record, dict):
            records.append(record)
    return records, sum(len(line) + 1 for line in lines)


def _json_head(body: bytes) -> list[dict[str, object]]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return [r for r in data if isinstance(r, dict)] if isinstance(data, list) else []


def _parquet_head(source: Source, path: str, size: int) -> tuple[list[dict[str, object]], int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(source.read(path)))
        batch = next(file.iter_batches(batch_size=256), None)
    except (pa.ArrowException, OSError):  # ingest names it
        return [], 0
    records = batch.to_pylist() if batch is not None else []
    return records, round(size * len(records) / max(file.metadata.num_rows, 1))


def _text(value: object) -> str:
    """As text that any tokenizer takes: a lone surrogate becomes a question mark."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value else ""
    return text.encode("utf-8", "replace").decode()


def _tokenizer(plan: Plan):  # type: ignore[no-untyped-def]
    external = plan.stage("dataset").externals["tokenizer"]
    s3 = {"endpoint": plan.spec.artifacts.endpoint, "region": plan.spec.artifacts.region}
    if not any(f.path == "tokenizer.json" for f in external.files):
        return lambda text: len(text) / 4
    source = open_model(external.uri, revision=external.revision, **s3)
    tokenizer = Tokenizer.from_str(source.read("tokenizer.json").decode())
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


class _Estimator:
    def __init__(self, plan: Plan, headers: Mapping[str, ModelHeader], sample: RowSample):
        self.plan, self.headers, self.sample = plan, headers, sample
        self.done: dict[str, StageEstimate] = {}
        self.models: dict[str, ModelHeader] = {}

    @property
    def prompt_tokens(self) -> float:
        """Mean of a prompt: what ingest counted, where rows are prompts alone, else the sample's."""
        rows = self.done.get("dataset")
        if rows is None or not rows.rows or self.sample.response_tokens:
            return self.sample.prompt_tokens
        return rows.tokens / rows.rows

    def add(self, stage: PlannedStage, manifest: Manifest | None) -> None:
        guess: StageEstimate = getattr(self, f"_{stage.type.value}")(stage)
        if manifest is not None:
            counts = manifest.counts
            guess = replace(
                guess,
                rows=counts.get("out", counts.get("rows", counts.get("done", guess.rows))),
                tokens=counts.get("tokens", guess.tokens),
                bytes=sum(o.size for o in manifest.objects),
                seconds=0.0,
            )
        self.done[stage.name] = guess

    @property
    def spec(self) -> DistillationJobSpec:
        return self.plan.spec

    def header(self, stage: PlannedStage, role: str) -> ModelHeader | None:
        if role in stage.inputs:
            return self.models.get(stage.inputs[role])
        external = stage.externals.get(role)
        return self.headers.get(external.uri) if external else None

    def _ingest(self, stage: PlannedStage) -> StageEstimate:
        mean = self.sample.prompt_tokens + self.sample.response_tokens
        tokens = round(self.sample.rows * mean)
        size = rows_bytes(self.sample.rows, tokens, round(self.sample.rows * self.sample.response_tokens))
        return StageEstimate(self.sample.rows, tokens, size, 600 << 20, 8 + tokens / 2e5)

    def _prepare(self, stage: PlannedStage) -> StageEstimate:
        header = self.header(stage, "model")
        if header is None:
            return StageEstimate()
        smaller = _pruned(header, self.plan, stage)
        self.models[stage.name] = smaller
        return StageEstimate(
            0, 0, smaller.weight_bytes, 2 * header.weight_bytes + (1 << 30), 25 + header.parameters / 2e7
        )

    def _generate(self, stage: PlannedStage) -> StageEstimate:
        body = self.plan.settings(stage.name).generate
        assert body is not None
        before = self.done[stage.inputs["rows"]]
        rows = before.rows * body.samples_per_prompt
        answered = round(rows * body.sampling.max_tokens * ANSWERED_SHARE)
        tokens = round(rows * self.prompt_tokens) + answered
        memory, seconds = self._asked(stage, answered, "generate")
        size = rows_bytes(rows, tokens) + rows * ANSWER_BYTES
        return StageEstimate(rows, tokens, size, memory, seconds)

    def _capture(self, stage: PlannedStage) -> StageEstimate:
        body = self.plan.settings(stage.name).capture
        assert body is not None
        before = self.done[stage.inputs["rows"]]
        scored = before.tokens - round(before.rows * self.prompt_tokens)
        header = self.header(stage, "teacher")
        bits = id_bits(header.vocabulary if header else 1 << 17)
        size = scored * position_bytes(body, bits) + before.tokens * 4.125 + before.rows * 24
        memory, seconds = self._asked(stage, before.tokens, "score")
        return StageEstimate(before.rows, before.tokens, round(size), memory, seconds)

    def _asked(self, stage: PlannedStage, tokens: int, work: str) -> tuple[int, float]:
        """Memory of the teacher and seconds of its work."""
        _, teacher = teacher_named(self.spec, stage.teacher)
        header = self.header(stage, "teacher")
        if teacher.hosted is None or header is None:
            return 0, tokens / 500
        rates, devices = _teacher_devices(teacher.hosted)
        seconds = rates.startup_seconds + tokens * 2 * header.parameters / (getattr(rates, work) * devices)
        return teacher_memory(header, teacher.hosted), seconds

    def _train(self, stage: PlannedStage) -> StageEstimate:
        body = self.plan.settings(stage.name).train
        header = self.header(stage, "model")
        assert body is not None
        if header is None:
            return StageEstimate()
        self.models[stage.name] = header
        before = self.done[stage.inputs["rows"]]
        share = 1 - self.sample.held_share
        epochs = body.epochs or 1
        tokens = round(before.tokens * share * epochs)
        if body.max_steps:
            rows = min(body.max_steps * body.global_batch_size, max(before.rows, 1) * 1000)
            tokens = round(before.tokens / max(before.rows, 1) * rows)
        gpus = self._gpus(stage)
        rates = GPU if gpus else CPU
        backbone = header.parameters - (0 if header.tied else header.head_parameters)
        seconds = 30 + tokens * 6 * backbone / (rates.train * max(gpus, 1))
        resources = self.plan.settings(stage.name).resources
        ranks = resources.nodes * max(resources.gpus_per_node, 1)
        memory = train_memory(header, body, ranks=ranks, on_gpu=gpus > 0).total
        return StageEstimate(round(before.rows * share * epochs), tokens, header.weight_bytes, memory, seconds)

    def _gpus(self, stage: PlannedStage) -> int:
        resources = self.plan.settings(stage.name).resources
        return (resources.nodes or 1) * (resources.gpus_per_node or 0) if resources else 0

    def _evaluate(self, stage: PlannedStage) -> StageEstimate:
        body = self.plan.settings(stage.name).evaluate
        header = self.header(stage, "model")
        assert body is not None
        if header is None:
            return StageEstimate()
        self.models[stage.name] = header
        held = round(self.done["dataset"].rows * self.sample.held_share)
        before = self.done[stage.inputs["rows"]]
        scored = held * before.tokens / max(before.rows, 1)
        answered = held * sum(suite.max_tokens for suite in body.suites) / 2
        tokens = round(2 * (scored + held * self.prompt_tokens + answered))  # of two models, by turns
        content = 2 * answered + max(0.0, scored - held * TEMPLATE_TOKENS)
        size = round(REPORT_BYTES + held * ITEM_BYTES + TOKEN_CHARACTERS * content)
        rates = GPU if self._gpus(stage) else CPU
        seconds = 20 + tokens * 2 * header.parameters / rates.generate
        return StageEstimate(held, tokens, size, 2 * header.weight_bytes + (1 << 30), seconds)

    def _publish(self, stage: PlannedStage) -> StageEstimate:
        header = self.header(stage, "model")
        body = self.plan.settings(stage.name).publish
        size = header.weight_bytes * len(body.targets) if header and body else 0
        return StageEstimate(0, 0, size, 300 << 20, 3 + size / 2e8)


def _pruned(header: ModelHeader, plan: Plan, stage: PlannedStage) -> ModelHeader:
    """The header of a model with fewer layers: parameters of a layer are those outside embeddings, by layer."""
    prepare = plan.settings(stage.name).prepare
    keep = prepare.prune.keep_layers if prepare and prepare.prune else header.layers
    embeddings = header.head_parameters * (1 if header.tied else 2)
    a_layer = (header.parameters - embeddings) // max(header.layers, 1)
    parameters = header.parameters - a_layer * (header.layers - keep)
    size = round(header.weight_bytes * parameters / max(header.parameters, 1))
    return replace(header, parameters=parameters, layers=keep, weight_bytes=size)


def rows_bytes(rows: int, tokens: int, references: int = 0) -> int:
    """Bytes of rows in Parquet, of ``references`` tokens kept besides; 11 % off at most on four real data sets.

    6 kB of schema; of a row its key and flags; of a token its id and its text, but for the template's, which are the same in
    each row and pack to nothing.
    """
    content = max(0, tokens - TEMPLATE_TOKENS * rows)
    return round(6000 + 30 * rows + 2.8 * content + 0.9 * references)


def id_bits(vocabulary: int) -> int:
    """High bits of a token id beside its low 16: the smallest of 0, 1, 2, 4, 8 that fit."""
    return next(b for b in (0, 1, 2, 4, 8) if vocabulary <= 1 << (16 + b))


def position_bytes(capture: Capture, bits: int) -> float:
    """Bytes of a scored position's planes."""
    entropy = 2 if capture.entropy or capture.profile == Profile.Unbiased else 0
    if capture.profile == Profile.Label:
        return 4 + entropy
    entries, draws = capture.top_k, capture.tail_draws
    ids = 2 * entries + math.ceil(bits * entries / 8)
    values = entries + 4 if capture.profile == Profile.Compact else 2 * entries
    drawn = 3 * draws + math.ceil(bits * draws / 8)
    tempered = 2 * sum(t != 1 for t in capture.temperatures)
    return ids + values + 6 + entropy + drawn + tempered


def teacher_memory(header: ModelHeader, hosted: HostedTeacher) -> int:
    """Bytes that one replica's processes need: weights at its dtype, one full-vocabulary softmax of a batch, and the rest."""
    width = 4 if hosted.dtype == "float32" else 2
    softmax = 8 * header.vocabulary * min(hosted.serving.max_num_batched_tokens or 2048, hosted.max_model_len or 2048)
    return header.parameters * width + softmax + (3 << 30)


def _teacher_devices(hosted: HostedTeacher) -> tuple[Rates, int]:
    gpus = (hosted.gpus_per_replica or 0) * hosted.replicas
    return (GPU, gpus) if gpus else (CPU, hosted.replicas)
