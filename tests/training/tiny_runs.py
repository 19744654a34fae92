"""Small training runs on the tiny models: rows, the teacher's real logits, and a gang of ranks on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import CONVERSATIONS

from kd_runtime.api.job import Train
from kd_runtime.artifacts.rows import Parent, Row, RowsReader, RowsWriter, row_key
from kd_runtime.artifacts.store import open_store
from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.shard import write_shard
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.models.loading import load_causal_lm, load_tokenizer
from kd_runtime.planning.tokenizers import tokenizer_digest, vocabulary_size
from kd_runtime.teachers.distributions import beyond_head, uniforms_of_row
from kd_runtime.teachers.transformers_engine import head_mask
from kd_runtime.telemetry.processes import free_port
from kd_runtime.training import checkpoints
from kd_runtime.training.checkpoints import Checkpoint, Trajectory
from kd_runtime.training.gang import Gang, Placement
from kd_runtime.training.order import training_order
from kd_runtime.training.selection import RowFacts, Selection, select
from kd_runtime.training.signs import Sign
from kd_runtime.training.task import MicroBatchBound, RankTask, StoreAddress, zero_stage

KEY = "ab" * 32
WRITER = "cd" * 16


def settings(**changes: Any) -> Train:
    """Train settings that suit the tiny student: KD in fp32 on one rank, unless changed (API names)."""
    document: dict[str, Any] = {
        "method": "KD",
        "objective": {"alpha": 0.7},
        "epochs": 1,
        "globalBatchSize": 8,
        "maxLength": 128,
        "optimizer": {"learningRate": 5e-3},
        "schedule": {"name": "Constant", "warmupRatio": 0.0},
        "precision": "fp32",
        "gradientCheckpointing": False,
        "deepspeed": {"zeroStage": 0},
    }
    for name, value in changes.items():
        document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
    return Train.model_validate(document)


@dataclass
class Made:
    """Rows and logits in a folder."""

    rows: list[Row]
    row_files: list[Path]
    shards: list[Path]
    spec: ShardSpec
    vocabulary: int


def conversations(count: int) -> list[tuple[str, str]]:
    """Distinct conversations: the tiny models' own, then combinations of their parts."""
    pairs = list(CONVERSATIONS)
    for gap in range(1, len(CONVERSATIONS)):
        pairs += [
            (f"{CONVERSATIONS[i - gap][0]} {question}", f"{CONVERSATIONS[i - gap][1]} {answer}")
            for i, (question, answer) in enumerate(CONVERSATIONS)
        ]
    return pairs[:count]


def make_rows(models: Path, pairs: Sequence[tuple[str, str]], parents: Sequence[int] = ()) -> list[Row]:
    """Rendered and tokenised conversations whose answers are scored; every row in the train split."""
    tokenizer = load_tokenizer(models / "student")
    digest = tokenizer_digest(models / "student")
    rows = []
    for number, (question, answer) in enumerate(pairs):
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        after = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False).input_ids
        ids = np.asarray(before + after, np.uint32)
        scored = np.arange(len(ids)) >= len(before)
        asked = [{"role": "user", "content": question}]
        copies = parents[number] if number < len(parents) else 1
        rows.append(
            Row(
                key=row_key(digest, asked, ids, scored),
                split="train",
                messages=asked,
                response=answer,
                reasoning=None,
                references=None,
                input_ids=ids,
                scored=scored,
                prompt_tokens=len(before),
                parents=tuple(Parent(f"q.jsonl:{number + 1}", sample) for sample in range(copies)),
                source=f"q.jsonl:{number + 1}",
            )
        )
    return rows


def teacher_rows(model_dir: Path, rows: Sequence[Row], spec: ShardSpec) -> list[TeacherRow]:
    """What the model in ``model_dir`` says of the rows' scored tokens."""
    model: Any = load_causal_lm(model_dir, torch.float32)
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        with torch.no_grad():
            lp = model(ids[None]).logits[0, :, : spec.vocab].double().log_softmax(-1)
        positions = np.flatnonzero(row.scored)
        at = lp[positions - 1]
        label = at[torch.arange(len(positions)), ids[positions]]
        top_lp, top_ids = at.topk(spec.k, -1) if spec.k else (None, None)
        tail = torch.log1p(-top_lp.exp().sum(-1).clamp(max=1 - 2**-30)) if top_lp is not None else None
        key = bytes.fromhex(row.key)
        inside = head_mask(at, spec.k)
        found.append(
            TeacherRow(
                key=key,
                input_ids=row.input_ids,
                scored=row.scored,
                lab_lp=label.numpy(),
                lab_rank=1 + (at > label[:, None]).sum(-1).numpy(),
                top_ids=None if top_ids is None else top_ids.numpy(),
                top_lp=None if top_lp is None else top_lp.numpy(),
                tail_lp=None if tail is None else tail.numpy(),
                **beyond_head(at, inside, spec, uniforms_of_row(key, len(positions), spec.m, seed=0)),
            )
        )
    return found


def make(
    folder: Path,
    models: Path,
    count: int = 24,
    *,
    k: int = 16,
    shard_rows: int = 7,
    teacher: str = "teacher",
    parents: Sequence[int] = (),
    **more: Any,
) -> Made:
    """Write ``count`` rows, and the logits of ``models/teacher`` for them in shards of ``shard_rows``; ``more`` of their
    spec."""
    rows = make_rows(models, conversations(count), parents)
    writer = RowsWriter(folder / "rows")
    for row in rows:
        writer.append(row)
    vocabulary = vocabulary_size(models / "student")
    spec = ShardSpec(**{"profile": "Exact", "k": k, "vocab": vocabulary, **more})
    return Made(rows, writer.close(), write_shards(folder, models / teacher, rows, spec, shard_rows), spec, vocabulary)


def write_shards(folder: Path, model: Path, rows: Sequence[Row], spec: ShardSpec, shard_rows: int) -> list[Path]:
    """The logits of ``model`` for ``rows``, ``shard_rows`` a file."""
    scored = teacher_rows(model, rows, spec)
    (folder / "logits").mkdir(exist_ok=True)
    paths = []
    for start in range(0, len(scored), shard_rows):
        path = folder / "logits" / f"{start:05d}.safetensors"
        write_shard(path, build_planes(spec, scored[start : start + shard_rows]), spec)
        paths.append(path)
    return paths


def selection_of(made: Made, train: Train) -> Selection:
    """All rows, each as often as it has parents."""
    keys = {row.key for row in made.rows}
    return select(
        RowFacts.read(RowsReader(made.row_files).column),
        max_length=train.max_length,
        keep_truncated=False,
        has_logits=keys.__contains__,
    )


@dataclass
class TinyRun:
    """A gang on made rows, in a folder of its own with a store of its own."""

    made: Made
    model: Path
    folder: Path
    train: Train
    ranks: int = 1
    bound: MicroBatchBound = field(default_factory=lambda: MicroBatchBound(rows=4))
    store: str = ""
    signs: list[Sign] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = self.store or f"file://{self.folder}/store"

    def task(self, **changes: Any) -> RankTask:
        """What the ranks are told."""
        selection = self.folder / "selection.npz"
        selection_of(self.made, self.train).save(selection)
        kd = self.train.method == "KD"
        task = RankTask(
            train=self.train,
            model=self.model,
            vocabulary=self.made.vocabulary,
            rows=tuple(self.made.row_files),
            selection=selection,
            logits=tuple(self.made.shards) if kd else (),
            logits_spec=self.made.spec.metadata() if kd else None,
            micro_batch=self.bound,
            out=self.folder / "out",
            store=StoreAddress(uri=self.store),
            trajectory=self.trajectory,
            work_prefix=f"work/{KEY}/{WRITER}/",
            threads=1,
        )
        return task.model_copy(update=changes)

    @property
    def trajectory(self) -> Trajectory:
        """What checkpoints say of it; its rows and logits are no artifacts."""
        steps = training_order(self.train, selection_of(self.made, self.train).copies).steps
        return Trajectory(zero_stage=zero_stage(self.train), inputs={}, steps=steps)

    def gang(self, task: RankTask, **changes: Any) -> Gang:
        """The gang, not started yet."""
        task.out.mkdir(parents=True, exist_ok=True)
        task.write(task.out / "task.json")
        place = Placement(self.ranks, 0, self.ranks, "127.0.0.1", free_port())
        options = {"stall_seconds": 120.0, "drain_seconds": 60.0, "heard": self.signs.append, **changes}
        return Gang(task.out / "task.json", task.out, place, 1, **options)

    def run(self, **changes: Any) -> TinyRun:
        """Train to the end."""
        self.gang(self.task(**changes)).run()
        return self

    @property
    def records(self) -> list[dict[str, Any]]:
        """The training log."""
        return [json.loads(line) for line in (self.folder / "out" / "train.jsonl").read_text().splitlines()]

    @property
    def first_step(self) -> int:
        """The first step that the last process took itself, by the tokens that it counted: signs may be missed."""
        left = int(self.timing["tokens"])
        for record in reversed(self.records):
            left -= record["tokens"]
            if left <= 0:
                return int(record["step"])
        raise AssertionError(f"{left} tokens more than the log has")

    @property
    def timing(self) -> dict[str, Any]:
        """What rank 0 counted."""
        return json.loads((self.folder / "out" / "timing.json").read_text())

    @property
    def accelerator_bytes(self) -> int:
        """What rank 0 took of a card; 0 where it trained on a CPU."""
        return int(self.timing["memory"]["accelerator"])

    @property
    def weights(self) -> Path:
        """The trained model's file."""
        return self.folder / "out" / "model" / "model.safetensors"

    @property
    def sha256(self) -> str:
        """Of the trained model's file."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    @property
    def objects(self) -> list[str]:
        """Names in the store."""
        return [info.name for info in open_store(self.store).list("")]


def gang_that(run: TinyRun, act: Callable[[Gang, Sign], None], **options: Any) -> Gang:
    """A gang whose signs ``act`` answers."""
    gang = run.gang(run.task(), **options)

    def heard(sign: Sign) -> None:
        run.signs.append(sign)
        act(gang, sign)

    gang.heard = heard
    return gang


def kill_all(gang: Gang, sign: Sign) -> None:
    """Kill every rank once the seventh step is done."""
    if sign.phase == "training" and sign.step >= 7:
        for process in gang._ranks.values():
            process.kill()


def newest(run: TinyRun) -> tuple[Checkpoint, Path]:
    """The newest checkpoint in the run's store, and a folder with its files."""
    said: list[str] = []
    found = checkpoints.newest(open_store(run.store), KEY, run.trajectory, run.folder / "resume", said.append)
    assert found is not None, said
    return found


def gone_on(run: TinyRun) -> TinyRun:
    """The same run from its newest checkpoint."""
    checkpoint, folder = newest(run)
    return run.run(resume=folder, resume_step=checkpoint.step)
