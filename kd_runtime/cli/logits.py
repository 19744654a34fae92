"""Commands about teacher logits: inspect, verify, stats, export, import."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from kd_runtime.api.failures import ExitClass, SettingsError
from kd_runtime.cli.consoles import console

app = typer.Typer(help="Look into shards of teacher logits (KDL).", no_args_is_help=True)
FilesArgument = Annotated[
    list[Path], typer.Argument(help="Shard files, or folders that are searched for *.safetensors.", exists=True)
]


def _shards(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return found


@app.command()
def inspect(files: FilesArgument) -> None:
    """Print what each shard holds: planes, shapes, bytes, what its manifest pins."""
    from kd_runtime.local.tables import number, size
    from kd_runtime.logits.inspection import inspect as look

    out = console()
    for path in _shards(files):
        info = look(path)
        said = (
            f"  {info.spec.profile} K={info.spec.k} M={info.spec.m} V={info.spec.vocab:,}  {info.rows:,} rows  "
            f"{info.tokens:,} tokens  {info.positions:,} scored  {size(info.bytes)}  "
            f"{info.bytes_per_position:.1f} B a position ({info.file_bytes_per_position:.1f} with all)"
        )
        out.print(Text.assemble((path.name, "bold"), said))
        table = Table("plane", "dtype", "shape", "bytes", "crc32c", box=None)
        for plane in info.planes:
            table.add_row(plane.name, plane.dtype, "x".join(map(str, plane.shape)), number(plane.bytes), plane.crc32c)
        out.print(table)
        for name, value in info.metadata.items():
            out.print(f"  {name}: {value}", style="dim")


@app.command()
def verify(files: FilesArgument) -> None:
    """Read every byte of every shard; exit 65 and name what is damaged."""
    from kd_runtime.logits.inspection import verify as check

    out, bad = console(soft_wrap=True), 0
    found = check(_shards(files))
    for one in found:
        bad += not one.sound
        for problem in one.problems:
            out.print(Text.assemble(("damaged", "red"), f" {one.path}: {problem}"))
    out.print(f"{len(found) - bad} of {len(found)} shards are sound")
    if bad:
        raise typer.Exit(int(ExitClass.BadData))


@app.command()
def stats(files: FilesArgument) -> None:
    """Print head mass, label ranks and perplexity over all scored positions."""
    from kd_runtime.local.tables import size
    from kd_runtime.logits.inspection import stats as figures

    found = figures(_shards(files))
    table = Table(box=None, show_header=False)
    table.add_row(
        "shards, rows, tokens, scored positions",
        f"{found.shards:,}  {found.rows:,}  {found.tokens:,}  {found.positions:,}",
    )
    table.add_row("bytes", size(found.bytes))
    table.add_row("teacher's perplexity of the labels", f"{found.label_perplexity:.3f}")
    table.add_row("labels that are its first choice", f"{found.label_top1:.1%}")
    if found.head_mass is not None and found.head_mass_p05 is not None and found.label_in_head is not None:
        table.add_row("labels within the head", f"{found.label_in_head:.1%}")
        table.add_row("mean mass of the head (5th percentile)", f"{found.head_mass:.4f} ({found.head_mass_p05:.4f})")
        table.add_row("largest defect of head and tail as stored", f"{found.defect:.1e}")
    if found.entropy is not None:
        table.add_row("teacher's mean entropy, nats", f"{found.entropy:.3f}")
    console().print(table)
    if found.low_head_mass:
        console().print(
            Text.assemble(("warning", "yellow"), " the head holds little of the teacher's mass; raise capture.topK")
        )


@app.command()
def export(
    files: FilesArgument,
    to: Annotated[Path, typer.Option("--to", help="An empty folder.")],
) -> None:
    """Join shards into files of 128 to 256 MiB, for another machine or tool."""
    from kd_runtime.local.tables import size
    from kd_runtime.logits.packs import export as join

    for path in join(_shards(files), to):
        print(f"{path}  {size(path.stat().st_size)}")


class Layout(StrEnum):
    """What other tools wrote."""

    DistillKit = "DistillKit"
    EasyDistill = "EasyDistill"


@app.command(name="import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="DistillKit: its output folder. EasyDistill: its logits file (JSON lines).", exists=True),
    ],
    layout: Annotated[Layout, typer.Option("--from", help="Which tool wrote it.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the teacher's tokenizer.", exists=True)],
    to: Annotated[Path, typer.Option("--to", help="An empty folder.")],
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            help="Parquet files, or folders of them, of a rows artifact: whose keys and masks to take.", exists=True
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, max=256, help="EasyDistill: entries a position; default: as many as all have.")
    ] = None,
) -> None:
    """Make shards (profile Exact) of what another tool captured."""
    from kd_runtime.logits.exchange import import_distillkit, import_easydistill

    files = [file for path in rows or () for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    if layout is Layout.DistillKit:
        done = import_distillkit(source, tokenizer, to, files)
    elif files:
        done = import_easydistill(source, tokenizer, to, files, top_k)
    else:
        raise SettingsError("--rows: EasyDistill's lines hold no tokens of their own; name the rows that were asked")
    print(
        f"{done.rows:,} rows, {done.positions:,} scored positions in {len(done.shards)} shards; {done.skipped:,} left out"
    )
