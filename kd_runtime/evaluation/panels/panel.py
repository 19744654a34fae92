"""What every panel of the report is: a title, and either its content or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A chart with its title, its legend, a note below it, and the same numbers as a table where they are few."""

    title: str
    chart: Markup
    legend: Markup = field(default_factory=Markup)
    note: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Table:
    """A table: its caption, its heads, and its rows of cells (text, or Markup where a cell holds a small picture)."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    numeric: frozenset[int] = frozenset()
    """Columns that are aligned to the right."""
    wide: frozenset[int] = frozenset()
    """Columns of long text, which may break anywhere."""
    caption_shown: bool = True
    """False where the panel's title says the same: the caption is then for screen readers alone."""


@dataclass(frozen=True)
class Panel:
    """One panel. ``kind`` names the macro of the template that lays its ``content`` out."""

    id: str
    title: str
    kind: str
    content: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why the panel has nothing to show; '' where it has."""
    lead: str = ""
    """One or two sentences that say how to read it."""


def absent(id: str, title: str, reason: str) -> Panel:
    """A panel whose inputs are missing, with the reason."""
    return Panel(id, title, "missing", missing=reason)


WHO_TITLES = {"teacher": "Teacher", "baseline": "Untrained", "student": "Trained"}
"""How the report calls the three models; also their order."""
