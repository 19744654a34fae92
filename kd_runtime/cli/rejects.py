"""Commands about rejected rows: what was lost, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

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
        table.add_row(name, reject.source, reject.row[:16], str(reject.sample), reject.reason, reject.detail)
    Console().print(table)
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


def rejected(manifest: Path, stage: str | None):  # type: ignore[no-untyped-def]
    """Pairs of (stage name, Reject) of a job that was run here."""
    from kd_runtime.artifacts.rejects import read_rejects
    from kd_runtime.local.run import open_run
    from kd_runtime.planning.lookup import look_up

    plan, store, _ = open_run(manifest)
    found = []
    for name, state in look_up(plan, store).items():
        if state.manifest is not None and stage in (None, name):
            found += [(name, reject) for reject in read_rejects(store, state.manifest)]
    return found
