"""The train stage: join rows and logits, start a gang of ranks, and commit the student."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_runtime.api.failures import DataError, ExitClass, SettingsError, TransientError
from kd_runtime.api.job import PreflightMode, Train, TrainMethod
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rejects import read_rejects
from kd_runtime.artifacts.rows import rows_of
from kd_runtime.logits.packs import packed
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.models.loading import copy_companions
from kd_runtime.planning.memory import AUTO_TOKENS
from kd_runtime.planning.plan import StageType
from kd_runtime.planning.tokenizers import vocabulary_size
from kd_runtime.stages.context import StageContext, StageOutcome
from kd_runtime.training import checkpoints
from kd_runtime.training.faults import INEXACT
from kd_runtime.training.gang import Gang, GangError, Placement
from kd_runtime.training.order import training_order
from kd_runtime.training.reshaping import universal
from kd_runtime.training.selection import RowFacts, Selection, select
from kd_runtime.training.signs import Sign
from kd_runtime.training.task import MicroBatchBound, RankTask, StoreAddress, zero_stage


def run(ctx: StageContext) -> StageOutcome:
    """Train the student of ``ctx`` and commit its directory, its log and its timings.

    Raises:
        DataError: a row is missing from the logits, or none is left.
        TransientError: the logits do not record these rows (the store changed), a stall, a lost peer.
        DrainedError's class: SIGTERM, after a checkpoint.
    """
    started = time.monotonic()
    inputs = _Inputs.of(ctx)
    placement = Placement.of(ctx.settings.resources.nodes, ctx.settings.resources.gpus_per_node, ctx.index, os.environ)
    task = inputs.task(ctx, placement)
    resumed = checkpoints.newest(
        ctx.store, ctx.stage.key, task.trajectory, ctx.work / "resume", lambda said: _say(ctx, said)
    )
    if resumed is not None:
        task = _going_on(ctx, task, placement, *resumed)
    elif _rehearses(ctx):
        task = _rehearsed(ctx, task, placement)
    task = _run(ctx, task, placement)
    if not placement.leads:
        return StageOutcome(None, message="rank 0's node commits")
    outcome = _commit(ctx, inputs, task, time.monotonic() - started)
    checkpoints.delete_all(ctx.store, ctx.stage.key)
    return outcome


@dataclass(frozen=True)
class _Inputs:
    """What the stage reads, on this machine, verified."""

    train: Train
    rows: tuple[Path, ...]
    selection: Selection
    logits: tuple[Path, ...]
    spec: ShardSpec | None
    model: Path
    tokenizer: Path
    vocabulary: int

    @classmethod
    def of(cls, ctx: StageContext) -> _Inputs:
        train = ctx.settings.train
        if train is None:
            raise SettingsError(f"stage {ctx.stage.name!r}: has no train settings")
        rows = rows_of(ctx.cache, ctx.store, ctx.input("rows"))
        facts = RowFacts.read(rows.column)
        reader: LogitsReader | None = None
        spec: ShardSpec | None = None
        paths: tuple[Path, ...] = ()
        rejected: frozenset[str] = frozenset()
        if train.method is TrainMethod.KD:
            paths, spec = _logits(ctx)
            reader = LogitsReader(paths, spec, folder=ctx.work)
            rejected = frozenset(reject.row for reject in read_rejects(ctx.store, ctx.input("logits")))
        selection = select(
            facts,
            max_length=train.max_length,
            keep_truncated=_keeps_truncated(ctx),
            has_logits=reader.has if reader else None,
            rejected=rejected,
            missing=train.objective.missing_logits,
        )
        tokenizer = ctx.external_dir("tokenizer") if "tokenizer" in ctx.stage.externals else ctx.model_dir("model")
        vocabulary = spec.vocab if spec else vocabulary_size(tokenizer)
        return cls(train, tuple(rows.paths), selection, paths, spec, ctx.model_dir("model"), tokenizer, vocabulary)

    def task(self, ctx: StageContext, placement: Placement) -> RankTask:
        selection = ctx.work / "selection.npz"
        self.selection.save(selection)
        artifacts = ctx.plan.spec.artifacts
        return RankTask(
            train=self.train,
            model=self.model,
            trust_remote_code=ctx.plan.spec.student.model.trust_remote_code,
            vocabulary=self.vocabulary,
            rows=self.rows,
            selection=selection,
            logits=self.logits,
            logits_spec=self.spec.metadata() if self.spec else None,
            micro_batch=_bound(self.train, ctx.settings.resources.gpus_per_node),
            out=ctx.work / "train",
            store=StoreAddress(uri=ctx.store.uri, endpoint=artifacts.endpoint, region=artifacts.region),
            trajectory=checkpoints.Trajectory(
                zero_stage=zero_stage(self.train),
                inputs=ctx.inputs_read,
                steps=training_order(self.train, self.selection.copies).steps,
            ),
            work_prefix=f"{checkpoints.work_prefix(ctx.stage.key)}{ctx.writer}/",
            threads=threads_each(placement.here, os.environ),
        )


def _logits(ctx: StageContext) -> tuple[tuple[Path, ...], ShardSpec]:
    """The shards, and their spec, once it is sure that they were made from the rows that are read."""
    rows, logits = ctx.input("rows"), ctx.input("logits")
    found = (logits.extra.get("rows_key"), logits.extra.get("rows_content"))
    if found != (rows.key, rows.content_digest):
        raise TransientError(
            f"input 'logits' (key {logits.key[:12]}) was made from rows {str(found[0])[:12]}/{str(found[1])[:12]}, the input "
            f"'rows' is {rows.key[:12]}/{rows.content_digest[:12]}: the store changed; plan again"
        )
    spec = ShardSpec(**{**logits.extra["spec"], "temperatures": tuple(logits.extra["spec"].get("temperatures", ()))})
    if not spec.k:
        raise DataError("logits: profile Label holds no teacher's head, which KD needs; capture with profile Exact")
    refs = logits.select("logits/")
    shards = [ctx.cache.file(ctx.store, ref) for ref in refs]
    return tuple(packed(shards, ctx.work / "logits")), spec


def _keeps_truncated(ctx: StageContext) -> bool:
    """Whether the stage that made the rows says that answers which were cut off are trained on."""
    maker = ctx.plan.stage(ctx.stage.inputs["rows"])
    if maker.type is not StageType.Generate:
        return False
    generate = ctx.plan.settings(maker.name).generate
    return generate is not None and generate.keep_truncated


def threads_each(ranks: int, environ: Any) -> int:
    """Threads of each rank: OMP_NUM_THREADS where it is set, else the cores shared out evenly."""
    if environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(environ["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def _bound(train: Train, gpus: int) -> MicroBatchBound:
    if isinstance(train.micro_batch_size, int):
        return MicroBatchBound(rows=train.micro_batch_size)
    return MicroBatchBound(tokens=AUTO_TOKENS[gpus > 0])


def _going_on(
    ctx: StageContext, task: RankTask, placement: Placement, checkpoint: checkpoints.Checkpoint, folder: Path
) -> RankTask:
    """The task from the checkpoint in ``folder``; shards that another number of ranks wrote are put together first."""
    changes = {
        "resume": folder,
        "resume_step": checkpoint.step,
        "resume_from": f"{checkpoint.writer}/step-{checkpoint.step}",
        "micro_batch": MicroBatchBound(**checkpoint.micro_batch),
    }
    said = f"going on after step {checkpoint.step}"
    if checkpoint.world_size != placement.world and checkpoint.trajectory.zero_stage > 0:
        said += f", whose shards {checkpoint.world_size} ranks wrote, with {placement.world}"
        changes |= {"resume": universal(folder), "universal": True}
    _say(ctx, said)
    return task.model_copy(update=changes)


def _rehearses(ctx: StageContext) -> bool:
    preflight = ctx.plan.spec.preflight
    return preflight.mode is not PreflightMode.Off and preflight.train_step


def _rehearsed(ctx: StageContext, task: RankTask, placement: Placement) -> RankTask:
    """Take the train step; where Auto's micro-batch does not fit an accelerator, halve it and try again."""
    while True:
        _say(ctx, f"the train step, at {_said(task.micro_batch)} a forward pass")
        try:
            rehearsal = task.model_copy(update={"rehearsal": True, "out": ctx.work / "rehearsal"})
            ran = _run(ctx, rehearsal, placement, drains=False)
            return task.model_copy(update={"exact": ran.exact})
        except GangError as error:
            smaller = _halved(task.micro_batch)
            if error.exit_class is not ExitClass.AcceleratorOutOfMemory or smaller is None:
                raise
            task = task.model_copy(update={"micro_batch": smaller})


def _run(ctx: StageContext, task: RankTask, placement: Placement, *, drains: bool = True) -> RankTask:
    """Run a gang in the task's folder; the task as it was run.

    Where the model has an operation without a form that gives the same bits each time, it is run again without asking for it.
    """
    try:
        _gang(ctx, task, placement, drains=drains).run()
        return task
    except GangError as error:
        if not task.exact or INEXACT not in str(error):
            raise
        _say(ctx, f"{error}; going on without: should it be interrupted, it ends in other bits than undisturbed")
        return _run(ctx, task.model_copy(update={"exact": False}), placement, drains=drains)


def _halved(bound: MicroBatchBound) -> MicroBatchBound | None:
    """Half of what Auto tried; None where rows were fixed by the user, or nothing is left to halve."""
    if bound.tokens is None or bound.tokens < 256:
        return None
    return MicroBatchBound(tokens=bound.tokens // 2)


def _said(bound: MicroBatchBound) -> str:
    return f"{bound.rows} rows" if bound.rows is not None else f"{bound.tokens} tokens"


def _gang(ctx: StageContext, task: RankTask, placement: Placement, *, drains: bool) -> Gang:
    task.out.mkdir(parents=True, exist_ok=True)
    path = task.out / "task.json"
    task.write(path)
    return Gang(
        task=path,
        out=task.out,
        placement=placement,
        threads=task.threads,
        stall_seconds=ctx.settings.stall_timeout_seconds,
        drain_seconds=task.train.checkpoint.drain_seconds,
        heard=lambda sign: _report(ctx, sign),
        drains=drains,
    )


def _report(ctx: StageContext, sign: Sign) -> None:
    ctx.reporter.update(
        sign.step, sign.steps, "steps", tokens=sign.tokens, loss=sign.loss, message=sign.phase, checkpoint=sign.saved
    )


def _say(ctx: StageContext, message: str) -> None:
    """Progress for people: in the live display, and in the stage's log."""
    print(f"{ctx.stage.name}: {message}", file=sys.stderr, flush=True)
    ctx.reporter.update(0, 0, "steps", message=message)


def _commit(ctx: StageContext, inputs: _Inputs, task: RankTask, seconds: float) -> StageOutcome:
    out = task.out
    copy_companions(inputs.model, out / "model")
    copy_companions(inputs.tokenizer, out / "model")
    _write_template(ctx, out / "model")
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    ctx.stage.recorded.update(_facts(task, json.loads((out / "timing.json").read_text())))
    artifact = ctx.new_artifact()
    artifact.add_tree(out / "model", "model/")
    if (out / "adapter").is_dir():
        artifact.add_tree(out / "adapter", "adapter/")
    artifact.add_file(out / "train.jsonl", "log/train.jsonl")
    artifact.add_file(out / "timing.json", "log/timing.json", aside=True)
    counts = {**inputs.selection.counts, "steps": len(records), "tokens": sum(int(r["tokens"]) for r in records)}
    metrics = final_metrics(records)
    manifest: Manifest = artifact.commit(counts=counts, metrics=metrics, seconds=seconds)
    return StageOutcome(manifest, manifest.counts, manifest.metrics)


def _facts(task: RankTask, timing: dict[str, Any]) -> dict[str, Any]:
    """Class (b): how it was run."""
    return {
        "microBatch": task.micro_batch.model_dump(exclude_none=True),
        "worldSize": timing["world"],
        "threads": task.threads,
        "exact": task.exact,
    }


def _write_template(ctx: StageContext, model: Path) -> None:
    """The template that the rows were rendered with is the one that serving must use."""
    if "template" not in ctx.stage.externals:
        return
    text = (ctx.external_dir("template") / ctx.external("template").files[0].path).read_text()
    (model / "chat_template.jinja").write_text(text)
    (model / "chat_template.json").unlink(missing_ok=True)
    config = model / "tokenizer_config.json"
    if config.exists():
        settings = json.loads(config.read_text())
        if settings.pop("chat_template", None) is not None:
            config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def final_metrics(records: list[dict[str, Any]]) -> dict[str, float]:
    """Loss, KD, CE and agreement over the last tenth of the steps, weighted by positions."""
    last = records[-max(1, len(records) // 10) :]
    metrics = {}
    for name, weight in (
        ("kd", "kd_positions"),
        ("agreement", "kd_positions"),
        ("ce", "ce_positions"),
        ("loss", "ce_positions"),
    ):
        having = [record for record in last if name in record]
        total = sum(record[weight] for record in having)
        if total:
            metrics[name] = sum(record[name] * record[weight] for record in having) / total
    return metrics
