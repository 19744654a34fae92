"""Commands about a store: ls, lineage."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

StoreOption = Annotated[str, typer.Option("--store", envvar="KD_STORE", help="The store's URI: file:///… or s3://…")]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(ls)
    app.command()(lineage)


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
    Console().print(table)


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
            tree.add(f"[dim]{role}: {digest[:16]}[/]")

    root = lineage_of(open_store(absolute(store)), key)
    tree = Tree(f"{root.stage_type} {root.key[:16]} content {root.content_digest[:12]}")
    grow(tree, root)
    Console().print(tree)


def absolute(uri: str) -> str:
    """A store URI with a relative file:// path made absolute against the current folder."""
    if uri.startswith("file://") and not uri.startswith("file:///"):
        return f"file://{os.path.abspath(uri.removeprefix('file://'))}/"  # noqa: PTH100 - the folder need not exist
    return uri
