"""A finished run made up from numbers and sentences, without any model: for tests of the report and the model card."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kd_runtime.api.job import DistillationJobSpec
from kd_runtime.api.runtime import RuntimeServing
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.artifacts.writer import ArtifactWriter
from kd_runtime.evaluation.curves import Positions, prompt_sums
from kd_runtime.evaluation.document import SuiteFacts, evaluation_document, headline_metrics
from kd_runtime.evaluation.repeats import longest_repeat
from kd_runtime.evaluation.scores import Items, Score, Who, write_items
from kd_runtime.planning.plan import External, Plan, PlannedStage, StageType

PROMPTS, MAX_TOKENS = 36, 160
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & "quotes" </title> one\u2028two\u2029three\x85four'
QUESTIONS = (
    (
        "Why do leaves change colour in autumn?",
        "Leaves change colour because the trees stop making chlorophyll when days get shorter. The green fades, "
        "and the yellow and orange pigments "
        "that were there all along become visible.",
    ),
    (
        "Write one sentence that sells a reusable water bottle.",
        "Stay refreshed all day with a bottle that never ends up in a landfill.",
    ),
    ("Turn this into a polite request: Send me the file.", "Could you please send me the file when you have a moment?"),
    (
        "List three uses for baking soda.",
        "1. It removes odours from a fridge.\n2. It cleans stained mugs.\n3. It makes cakes rise.",
    ),
    ("What is the capital of Australia?", "The capital of Australia is Canberra."),
    (
        "Summarise in one sentence: The bridge was closed on Monday after inspectors found cracks, and will open again in two weeks.",
        "The bridge is closed for two weeks because inspectors found cracks in it.",
    ),
    (
        "Give an antonym of 'generous' and use it in a sentence.",
        "An antonym is 'stingy': The stingy landlord refused to fix the heating.",
    ),
    (f"What does this tag do? {HOSTILE}", f"It runs a script in the page: {HOSTILE}"),
    (
        "Explain what a hash table is to a ten-year-old.",
        "A hash table is like a wall of numbered lockers. A rule turns each name into a locker number, "
        "so you can find things without looking in every locker.",
    ),
)


@dataclass
class MadeRun:
    """A plan, the manifests that exist, and the store that they are in."""

    plan: Plan
    manifests: dict[str, Manifest]
    store: Store
    cache: Cache


@dataclass
class Maker:
    """Writes artifacts with fixed times and writer, so that a report of them is the same each time."""

    store: Store
    manifests: dict[str, Manifest] = field(default_factory=dict)

    def commit(
        self,
        stage: PlannedStage,
        files: dict[str, bytes],
        *,
        counts: dict[str, int],
        seconds: float,
        metrics: dict[str, float] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        writer = ArtifactWriter(
            self.store,
            key=stage.key,
            stage_type=stage.type.value,
            writer="0" * 32,
            inputs={
                role: (self.manifests[name].key, self.manifests[name].content_digest)
                for role, name in stage.inputs.items()
                if name in self.manifests
            },
            externals={role: external.digest for role, external in stage.externals.items()},
            settings=stage.keyed,
            recorded=stage.recorded,
            clock=lambda: datetime(2026, 3, 1, 12, len(self.manifests), tzinfo=UTC),
        )
        for path, body in files.items():
            writer.add_bytes(body, path)
        self.manifests[stage.name] = writer.commit(counts=counts, metrics=metrics, extra=extra, seconds=seconds)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def json_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


SPEC: dict[str, Any] = {
    "teacher": {
        "hosted": {
            "model": {"uri": "file:///models/SmolLM2-135M-Instruct/"},
            "engine": "VLLM",
            "dtype": "float32",
            "maxModelLen": 1024,
        }
    },
    "student": {"model": {"uri": "file:///models/SmolLM2-135M-Instruct/"}},
    "dataset": {"uri": "file:///examples/instructions.jsonl", "format": "JSONL", "fields": {"prompt": "instruction"}},
    "artifacts": {"uri": "file:///store/"},
    "stages": [
        {"name": "small", "prepare": {"prune": {"keepLayers": 24, "by": "BlockInfluence"}}},
        {"name": "answers", "generate": {"samplesPerPrompt": 1, "sampling": {"maxTokens": MAX_TOKENS}}},
        {"name": "logits", "capture": {"profile": "Exact", "topK": 32}},
        {"name": "student", "inputs": {"model": "small"}, "train": {"method": "KD", "maxSteps": 240}},
        {
            "name": "exam",
            "inputs": {"model": "student"},
            "evaluate": {
                "suites": [{"name": "HeldOut", "maxTokens": MAX_TOKENS}],
                "gates": [
                    {"metric": "recoveredGap", "of": "KL", "op": "AtLeast", "value": 0.5, "confidence": 0.95},
                    {"metric": "value", "of": "Agreement", "op": "AtLeast", "value": 0.8, "confidence": 0.9},
                ],
            },
        },
        {
            "name": "release",
            "inputs": {"model": "student"},
            "publish": {"targets": [{"uri": "file:///published/"}], "requireGates": False},
        },
    ],
}


def made_plan(spec: dict[str, Any] | None = None) -> Plan:
    """The plan of the quickstart, with made-up keys."""
    base = External(
        kind="model", uri="file:///models/SmolLM2-135M-Instruct/", digest=digest("weights"), size=269_060_552
    )
    tokenizer = External(kind="tokenizer", uri=base.uri, digest=digest("tokenizer"), size=2_104_556)
    dataset = External(kind="dataset", uri="file:///examples/instructions.jsonl", digest=digest("rows"), size=48_211)
    teacher = base.model_copy(update={"kind": "teacher"})

    def stage(
        name: str, kind: StageType, inputs: dict[str, str], externals: dict[str, External], **more: Any
    ) -> PlannedStage:
        return PlannedStage(
            name=name, type=kind, key=digest(f"key {name}"), semantics=1, inputs=inputs, externals=externals, **more
        )

    train = {
        "method": "KD",
        "objective": {"divergence": "ForwardKL", "alpha": 0.9, "temperature": 1},
        "globalBatchSize": 4,
        "maxSteps": 240,
        "maxLength": 512,
        "optimizer": {"name": "AdamW", "learningRate": 2e-4, "betas": [0.9, 0.95], "weightDecay": 0},
        "schedule": {"name": "Cosine", "warmupRatio": 0.1},
        "precision": "fp32",
        "seed": 0,
    }
    rows = {"rows": "answers"}
    stages = (
        stage("dataset", StageType.Ingest, {}, {"dataset": dataset, "tokenizer": tokenizer}, keyed={"maxTokens": 1024}),
        stage(
            "small",
            StageType.Prepare,
            {"rows": "dataset"},
            {"model": base},
            keyed={"prune": {"keepLayers": 24, "by": "BlockInfluence"}},
        ),
        stage(
            "answers",
            StageType.Generate,
            {"rows": "dataset"},
            {"teacher": teacher, "tokenizer": tokenizer},
            keyed={"samplesPerPrompt": 1},
        ),
        stage("logits", StageType.Capture, rows, {"teacher": teacher}, keyed={"profile": "Exact", "topK": 32}),
        stage(
            "student",
            StageType.Train,
            {"model": "small", "logits": "logits", **rows},
            {},
            keyed=train,
            recorded={"microBatchSize": 4},
        ),
        stage(
            "exam",
            StageType.Evaluate,
            {"model": "student", "baseline": "small", "logits": "logits", "answers": "answers", **rows},
            {},
        ),
        stage(
            "release", StageType.Publish, {"model": "student", "evaluation.exam": "exam"}, {}, keyed={"modelCard": True}
        ),
    )
    parsed = DistillationJobSpec.model_validate(spec or SPEC)
    return Plan(
        job="quickstart",
        runtime="cpu",
        runtime_hash=digest("cpu"),
        serving=RuntimeServing(),
        spec=parsed,
        stages=stages,
    )


def made_run(folder: Path, *, until: str = "release", sft: bool = False) -> MadeRun:
    """A run whose stages up to ``until`` are done, in a file:// store below ``folder``; ``sft`` leaves teacher logits out."""
    plan, maker = made_plan(), Maker(open_store(f"file://{folder}/store"))
    for stage in plan.stages:
        _make(maker, stage, sft)
        if stage.name == until:
            break
    return MadeRun(plan, maker.manifests, maker.store, Cache(folder / "cache"))


def _make(maker: Maker, stage: PlannedStage, sft: bool) -> None:
    weights = {"model/config.json": b'{"model_type": "llama"}', "model/model.safetensors": bytes(200_000)}
    if stage.name == "dataset":
        rejects = [
            {
                "row": "instructions.jsonl:17",
                "sample": 0,
                "reason": "BadJSON",
                "detail": "Expecting ',' delimiter at column 41",
                "source": "instructions.jsonl:17",
            },
            {
                "row": "instructions.jsonl:203",
                "sample": 0,
                "reason": "Empty",
                "detail": "field instruction is empty",
                "source": "instructions.jsonl:203",
            },
        ]
        counts = {"in": 322, "done": 320, "rejected": 2, "out": 318, "train": 282, "heldOut": 36, "tokens": 11_904}
        maker.commit(
            stage,
            {"rows/00000.parquet": bytes(48_000), "rejects.jsonl": json_lines(rejects)},
            counts=counts,
            seconds=1.9,
        )
    elif stage.name == "small":
        maker.commit(stage, weights, counts={"layers": 24, "parameters": 113_000_000}, seconds=14.2)
    elif stage.name == "answers":
        rejects = [
            {
                "row": "ab" * 16,
                "sample": 0,
                "reason": "Empty",
                "detail": "the teacher's answer is empty",
                "source": "instructions.jsonl:88",
            }
        ]
        counts = {
            "in": 318,
            "done": 317,
            "rejected": 1,
            "out": 317,
            "truncated": 21,
            "tokens": 34_960,
            "promptTokens": 16_730,
            "completionTokens": 18_230,
        }
        maker.commit(
            stage,
            {"rows/00000.parquet": bytes(131_000), "rejects.jsonl": json_lines(rejects)},
            counts=counts,
            seconds=121.0,
        )
    elif stage.name == "logits":
        counts = {"in": 317, "done": 317, "rejected": 0, "shards": 2, "tokens": 34_960, "positions": 18_549}
        maker.commit(stage, {"logits/00000.safetensors": bytes(2_700_000)}, counts=counts, seconds=96.4)
    elif stage.name == "student":
        files = {**weights, "log/train.jsonl": json_lines(train_log(kd=not sft))}
        maker.commit(
            stage,
            files,
            counts={"in": 281, "done": 262, "leftOut": 19, "truncated": 19, "steps": 240, "tokens": 50_120},
            seconds=262.5,
        )
    elif stage.name == "exam":
        files, metrics = exam_files(with_logits=not sft)
        maker.commit(
            stage, files, counts={"prompts": PROMPTS, "rows": PROMPTS, "tokens": 9_417}, seconds=88.0, metrics=metrics
        )
    else:
        maker.commit(
            stage,
            {"README.md": b"# card"},
            counts={"targets": 1, "files": 9},
            seconds=0.8,
            extra={"targets": ["file:///published/"]},
        )


def train_log(kd: bool = True, steps: int = 240) -> list[dict[str, Any]]:
    """A training log with the shape of a real one: noisy, falling, warm-up and cosine."""
    draw = np.random.default_rng(1)
    records = []
    for step in range(1, steps + 1):
        share, noise = step / steps, draw.normal(0, 0.06, 4)
        record: dict[str, Any] = {
            "step": step,
            "epoch": 1 + step * 4 // 284,
            "rows": 4,
            "tokens": int(draw.integers(150, 280)),
            "ce": 1.1 + 0.9 * np.exp(-4 * share) + noise[0],
            "lr": 2e-4 * min(step / 24, 0.5 * (1 + np.cos(np.pi * max(0, step - 24) / (steps - 24)))),
            "grad_norm": 1.2 + 2.4 * np.exp(-6 * share) + abs(noise[1]) * 4,
        }
        if kd:
            record |= {
                "kd": 0.45 + 0.75 * np.exp(-5 * share) + noise[2],
                "head_mass_teacher": 0.962 + noise[3] / 20,
                "head_mass_student": 0.938 - 0.07 * np.exp(-5 * share) + noise[3] / 10,
                "agreement": 0.73 - 0.17 * np.exp(-5 * share) + noise[0] / 2,
                "overlap": 0.68 - 0.2 * np.exp(-5 * share) + noise[1] / 2,
            }
        record["loss"] = 0.9 * record.get("kd", 0.0) + 0.1 * record["ce"]
        records.append({k: float(v) if isinstance(v, np.floating) else v for k, v in record.items()})
    return records


def made_positions() -> Positions:
    """Held-out positions of 36 prompts: the student between its baseline and its teacher."""
    draw = np.random.default_rng(2)
    lengths = draw.integers(12, MAX_TOKENS, PROMPTS)
    prompt = np.repeat(np.arange(PROMPTS), lengths)
    offset = np.concatenate([np.arange(n) for n in lengths])
    ease = np.repeat(draw.normal(0, 0.05, PROMPTS), lengths) + 0.1 * np.log1p(offset) / 5
    size = len(prompt)
    values = {
        (Score.KL, Who.Student): draw.gamma(1.2, 0.36, size) * (1.25 - ease),
        (Score.KL, Who.Baseline): draw.gamma(1.2, 0.82, size) * (1.2 - ease),
        (Score.Agreement, Who.Student): (draw.random(size) < 0.68 + ease).astype(float),
        (Score.Agreement, Who.Baseline): (draw.random(size) < 0.54 + ease).astype(float),
        (Score.CrossEntropy, Who.Student): draw.gamma(1.0, 1.19, size),
        (Score.CrossEntropy, Who.Baseline): draw.gamma(1.0, 1.75, size),
        (Score.CrossEntropy, Who.Teacher): draw.gamma(1.0, 0.71, size),
    }
    return Positions(prompt, offset, np.ones(size), values)


def made_answers() -> list[dict[str, Any]]:
    """Answers of 36 prompts: the teacher's end, the untrained model's mostly loop, the trained one's mostly end."""
    draw = np.random.default_rng(3)
    records = []
    for number in range(PROMPTS):
        question, reply = QUESTIONS[number % len(QUESTIONS)]
        words = reply.split()
        loop = " ".join(words[: 3 + number % 3])
        untrained = f"{loop}, " + f"and {loop}, " * 9 if number % 3 else f"{loop} {' '.join(reversed(words))}."
        trained = (
            reply.replace("because", "since")
            if number % 5
            else f"{reply} {' '.join(words[-3:])} {' '.join(words[-3:])}"
        )
        records.append(
            {
                "prompt": digest(f"{number}{question}")[:32],
                "source": f"instructions.jsonl:{7 * number + 3}",
                "messages": [{"role": "user", "content": question}],
                "references": [],
                "teacher": _answer(reply, ended=number % 12 != 7),
                "baseline": _answer(untrained, ended=number % 3 == 0 and draw.random() < 0.7),
                "student": _answer(trained, ended=bool(draw.random() < 0.85)),
            }
        )
    return records


def _answer(text: str, *, ended: bool) -> dict[str, Any]:
    words = text.split()
    ids = [sorted(set(words)).index(w) for w in words]
    repeat = longest_repeat(ids)
    return {
        "text": text,
        "ended": bool(ended),
        "tokens": len(words),
        "exactMatch": None,
        "repeat": {"length": repeat.length, "period": repeat.period, "start": repeat.start},
    }


def made_items(positions: Positions, answers: list[dict[str, Any]], with_logits: bool) -> Items:
    """Per-prompt sums of the made positions and answers."""
    sums = {
        key: prompt_sums(positions.prompt, values, positions.weight, PROMPTS)
        for key, values in positions.values.items()
        if with_logits or (key[0] is Score.CrossEntropy and key[1] is not Who.Teacher)
    }
    for who in Who:
        for score, value in (
            (Score.Ended, lambda a: float(a["ended"])),
            (Score.LongestRepeat, lambda a: float(a["repeat"]["length"])),
            (Score.AnswerTokens, lambda a: float(a["tokens"])),
        ):
            sums[score, who] = np.array([[value(r[who]), 1.0] for r in answers])
    return Items(tuple(r["prompt"] for r in answers), sums)


def exam_files(with_logits: bool = True) -> tuple[dict[str, bytes], dict[str, float]]:
    """The files of an evaluate artifact, and its metrics."""
    positions, answers = made_positions(), made_answers()
    items = made_items(positions, answers, with_logits)
    missing = (
        {}
        if with_logits
        else {"KL": "the stage has no logits among its inputs", "Agreement": "the stage has no logits among its inputs"}
    )
    document = evaluation_document(
        items,
        positions if with_logits else None,
        suites=[SuiteFacts("HeldOut", MAX_TOKENS, PROMPTS, PROMPTS, len(positions.prompt))],
        logits={"profile": "Exact", "topK": 32, "vocabulary": 49_152} if with_logits else None,
        missing={**missing, "ExactMatch": "the dataset has no references"},
    )
    with tempfile.TemporaryDirectory() as folder:
        write_items(items, Path(folder) / "items.jsonl")
        lines = (Path(folder) / "items.jsonl").read_bytes()
    files = {
        "evaluation.json": json.dumps(document).encode(),
        "items.jsonl": lines,
        "answers.jsonl": json_lines(answers),
    }
    return files, headline_metrics(document)
