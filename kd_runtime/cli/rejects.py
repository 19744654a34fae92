"""Commands about rejected rows: what was lost, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kd_runtime.cli.consoles import console

if TYPE_CHECKING:
    from kd_runtime.planning.plan import Plan

app = typer.Typer(help="Rows that a stage rejected, with their reasons.", no_args_is_help=True)
ManifestArgument = Annotated[
    Path, typer.Argument(help="The job's YAML file, run here before.", exists=True, dir_okay=False)
]
StageOption = Annotated[str | None, typer.Option("--stage", help="Only this stage's.")]


@app.command("list")
def list_(
    manifest: ManifestArgument, stage: StageOption = None, limit: Annotated[int, typer.Option(help="Rows shown.")] = 50
) -> None:
    """Show rejected rows: stage, where they are from, reason, detail."""
    table = Table("stage", "source", "row", "sample", "reason", "detail", box=None)
    found = rejected(manifest, stage)
    for name, reject in found[:limit]:
        row = reject.row[:16] if reject.row != reject.source else ""
        table.add_row(name, reject.source, row, str(reject.sample), reject.reason, reject.detail)
    console().print(table)
    print(f"{len(found)} rejected rows" + (f", {limit} shown" if len(found) > limit else ""))


@app.command()
def export(
    manifest: ManifestArgument,
    output: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    stage: StageOption = None,
) -> None:
    """Write rejected rows as JSONL."""
    found = rejected(manifest, stage)
    lines = [json.dumps({"stage": name, **asdict(reject)}, ensure_ascii=False) for name, reject in found]
    output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{len(found)} rejected rows written to {output}")


@app.command()
def retry(
    manifest: ManifestArgument,
    stage: Annotated[
        str, typer.Option("--stage", help="The generate or capture stage whose rejected rows to ask again.")
    ],
) -> None:
    """Ask what a teacher stage rejected once more: the next `kd run` asks those rows alone."""
    from kd_runtime.artifacts.cache import Cache
    from kd_runtime.local.run import open_run
    from kd_runtime.stages.retrying import retry as retry_stage

    plan, store, cache = open_run(manifest)
    _check_continued(manifest, plan, stage)
    asked = retry_stage(plan, store, Cache(cache), stage)
    others = (
        f"; {asked.others} were answered and cannot be rows, asking again would not change that" if asked.others else ""
    )
    print(f"{stage}: {asked.asked} rejected rows will be asked again by `kd run {manifest}`{others}")


def _check_continued(manifest: Path, plan: Plan, stage: str) -> None:
    """SettingsError where the next run has an id of its own, so that it asks everything anyway."""
    from kd_runtime.api.failures import SettingsError
    from kd_runtime.api.stage import CacheMode
    from kd_runtime.local.folder import RunFolder
    from kd_runtime.local.manifest import load_job

    state = RunFolder(load_job(manifest).run_folder).last()
    uncached = any(s.name == stage and s.cache is CacheMode.Never for s in plan.spec.stages)
    if uncached and state is not None and state.ended:
        raise SettingsError(
            f"--stage {stage}: has cache: Never and its run has ended, so the next run asks every row anew; just run it"
        )


def rejected(manifest: Path, stage: str | None):  # type: ignore[no-untyped-def]
    """Pairs of (stage name, Reject) of a job that was run here.

    Raises:
        SettingsError: the job has no stage of that name.
    """
    from kd_runtime.api.failures import SettingsError
    from kd_runtime.artifacts.cache import Cache
    from kd_runtime.local.run import open_run
    from kd_runtime.stages.retrying import stage_rejects

    plan, store, cache = open_run(manifest)
    names = [planned.name for planned in plan.stages]
    if stage is not None and stage not in names:
        raise SettingsError(f"--stage {stage}: the job has no such stage; its stages are {', '.join(names)}")
    chosen = [name for name in names if stage in (None, name)]
    return [(name, reject) for name in chosen for reject in stage_rejects(plan, store, Cache(cache), name)]
