"""Commands about jobs: run, plan, lint, schema, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kd_runtime.api.failures import ExitClass
from kd_runtime.cli.consoles import console

ManifestArgument = Annotated[Path, typer.Argument(help="The job's YAML file.", exists=True, dir_okay=False)]
RuntimeOption = Annotated[
    Path | None,
    typer.Option("--runtime", help="A ClusterDistillationRuntime's YAML file; else one in the job's file, else `cpu`."),
]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(run)
    app.command()(plan)
    app.command()(lint)
    app.command()(schema)


def run(manifest: ManifestArgument, runtime: RuntimeOption = None) -> None:
    """Run a job on this machine; typed again, it goes on where it was."""
    from kd_runtime.local.run import run_manifest

    out = console()
    path = run_manifest(manifest, runtime, out)
    out.print(Text.assemble("\n", ("report", "bold"), f"  {path}"), soft_wrap=True)


def plan(manifest: ManifestArgument, runtime: RuntimeOption = None) -> None:
    """Show what a job would do and cost, stage by stage, and probe what it needs; nothing is run."""
    from kd_runtime.local.run import show_plan

    show_plan(manifest, runtime, console())


def lint(
    files: Annotated[list[Path], typer.Argument(help="Manifests to check.", exists=True, dir_okay=False)],
    runtime: RuntimeOption = None,
) -> None:
    """Check manifests: every error at once, with field, value and remedy."""
    from kd_runtime.api.lint import lint as lint_file

    out, bad = console(soft_wrap=True), 0
    for file in files:
        found = lint_file(file, runtime)
        for error in found.errors:
            out.print(Text.assemble(("error", "red"), f"   {file}: {error}"))
        for warning in found.warnings:
            out.print(Text.assemble(("warning", "yellow"), f" {file}: {warning}"))
        for line in found.wiring:
            out.print(f"        {file}: {line}")
        bad += bool(found.errors)
        if not found.errors:
            out.print(Text.assemble(("ok", "green"), f"      {file}"))
    if bad:
        raise typer.Exit(int(ExitClass.BadSettings))


def schema(
    kind: Annotated[str, typer.Argument(help="DistillationJob or ClusterDistillationRuntime.")] = "DistillationJob",
) -> None:
    """Print the JSON Schema of a kind, for editors."""
    import json

    from kd_runtime.api.schema import json_schema

    print(json.dumps(json_schema(kind), indent=2))


def report(
    manifest: ManifestArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the HTML.")] = None,
) -> None:
    """Render the HTML report of a job that was run here."""
    from kd_runtime.local.run import open_run, write_report

    planned, store, cache = open_run(manifest)
    target = output or manifest.resolve().parent / ".kd" / "runs" / planned.job / "report.html"
    console(soft_wrap=True).print(str(write_report(planned, store, cache, target)))
