"""Commands about a store: ls, lineage, gc, copy."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from kd_runtime.cli.consoles import console

StoreOption = Annotated[str, typer.Option("--store", envvar="KD_STORE", help="The store's URI: file:///… or s3://…")]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(ls)
    app.command()(lineage)
    app.command()(gc)
    app.command()(copy)


def ls(store: StoreOption) -> None:
    """List the artifacts of a store, newest last."""
    from kd_runtime.artifacts.lineage import list_artifacts
    from kd_runtime.artifacts.store import open_store
    from kd_runtime.local.tables import number, size

    table = Table("key", "type", "rows", "bytes", "made", box=None)
    for manifest in sorted(list_artifacts(open_store(absolute(store))), key=lambda m: m.created):
        rows = manifest.counts.get("out", manifest.counts.get("done", 0))
        total = sum(o.size for o in manifest.objects)
        table.add_row(manifest.key[:16], manifest.stage_type, number(rows), size(total), manifest.created)
    console().print(table)


def lineage(
    key: Annotated[str, typer.Argument(help="An artifact's key, or its first digits.")], store: StoreOption
) -> None:
    """Show what an artifact was made from, down to the digests of what lies outside."""
    from kd_runtime.artifacts.lineage import lineage as lineage_of
    from kd_runtime.artifacts.store import open_store

    def grow(tree: Tree, node: object) -> None:
        for role, child in node.inputs:  # type: ignore[attr-defined]
            grow(tree.add(f"{role}: {child.stage_type} {child.key[:16]} content {child.content_digest[:12]}"), child)
        for role, digest in node.externals.items():  # type: ignore[attr-defined]
            tree.add(Text(f"{role}: {digest[:16]}", style="dim"))

    root = lineage_of(open_store(absolute(store)), key)
    tree = Tree(f"{root.stage_type} {root.key[:16]} content {root.content_digest[:12]}")
    grow(tree, root)
    console().print(tree)


def gc(
    store: StoreOption,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="An artifact to keep: its key, or the first digits. Repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete what no plan of the last 30 days, no published model and no --keep needs; nothing younger than 7 days."""
    from kd_runtime.artifacts.collect import collect
    from kd_runtime.artifacts.lineage import find_key
    from kd_runtime.artifacts.store import open_store
    from kd_runtime.local.tables import number, size

    opened = open_store(absolute(store))
    swept = collect(opened, keep=[find_key(opened, key) for key in keep or ()], dry_run=dry_run)
    table = Table("what", "name", "objects", "bytes", box=None)
    for one in swept:
        table.add_row(one.kind, one.name[:64], number(one.objects), size(one.size))
    if swept:
        console().print(table)
    total = sum(one.size for one in swept)
    print(f"{'would free' if dry_run else 'freed'} {size(total)} ({total} bytes) in {len(swept)} places")


def copy(
    key: Annotated[str, typer.Argument(help="An artifact's key, or its first digits.")],
    store: StoreOption,
    to: Annotated[str, typer.Option("--to", help="The store to copy to.")],
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="S3 endpoint of the store to copy to.")] = None,
) -> None:
    """Copy an artifact and all that it was made from to another store; typed again, it goes on where it was."""
    from kd_runtime.artifacts.copying import copy_artifact
    from kd_runtime.artifacts.lineage import find_key
    from kd_runtime.artifacts.store import open_store
    from kd_runtime.local.tables import size

    source, target = open_store(absolute(store)), open_store(absolute(to), endpoint=endpoint)
    for copied in copy_artifact(source, find_key(source, key), target):
        moved = f"{copied.objects} objects, {size(copied.size)}" if copied.objects else "was there"
        print(f"{copied.stage_type:<10} {copied.key[:16]}  {moved}")


def absolute(uri: str) -> str:
    """A store URI with a relative file:// path made absolute against the current folder."""
    if uri.startswith("file://") and not uri.startswith("file:///"):
        return f"file://{os.path.abspath(uri.removeprefix('file://'))}/"  # noqa: PTH100 - the folder need not exist
    return uri
