"""A layered drawing of a small directed graph, top to bottom, as inline SVG: which artifact was made from which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

NODE_WIDTH, NODE_HEIGHT = 192.0, 62.0
PASS_WIDTH = 20.0
"""Room left for an edge that passes through a layer."""
GAP_X, GAP_Y, MARGIN = 22.0, 38.0, 8.0
SWEEPS = 6


@dataclass(frozen=True)
class Node:
    """A box: its title, smaller lines below it, a CSS class, and a tooltip."""

    id: str
    title: str
    lines: tuple[str, ...]
    kind: str
    tooltip: str = ""


@dataclass(frozen=True)
class Edge:
    """From a node to one that was made from it, in some role."""

    source: str
    target: str
    label: str


@dataclass(frozen=True)
class Layout:
    """Where nodes' centres lie, the way points of each edge, and the whole's size."""

    centres: Mapping[str, tuple[float, float]]
    routes: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
    width: float
    height: float


def layers(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, int]:
    """Each node's layer: below all its sources; a node without sources sits just above its first reader.

    ``nodes`` must be in an order in which sources come first.
    """
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.id] = max((depth[e.source] + 1 for e in edges if e.target == node.id), default=0)
    for node in nodes:
        if not any(e.target == node.id for e in edges):
            readers = [depth[e.target] for e in edges if e.source == node.id]
            depth[node.id] = max(min(readers, default=1) - 1, 0)
    return depth


def lay_out(nodes: Sequence[Node], edges: Sequence[Edge]) -> Layout:
    """Layers by longest path, order in a layer by barycentres, long edges given a lane through the layers between."""
    depth = layers(nodes, edges)
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for node in nodes:
        rows[depth[node.id]].append(node.id)
    chains = _chains(edges, depth, rows)
    links = [(a, b) for chain in chains.values() for a, b in pairwise(chain)]
    _order(rows, links)
    centres = _place(rows, links)
    width = max((x + _half(name) for name, (x, _) in centres.items()), default=0) + MARGIN
    height = len(rows) * (NODE_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    routes = {pair: [centres[name] for name in chain] for pair, chain in chains.items()}
    return Layout({n.id: centres[n.id] for n in nodes}, routes, width, height)


def _chains(edges: Sequence[Edge], depth: Mapping[str, int], rows: list[list[str]]) -> dict[tuple[str, str], list[str]]:
    """Each edge as a chain of names, one a layer; the names between are made up and put into ``rows``."""
    chains: dict[tuple[str, str], list[str]] = {}
    for edge in edges:
        pair = (edge.source, edge.target)
        if pair in chains:
            continue
        between = [f"\0{edge.source}\0{edge.target}\0{d}" for d in range(depth[edge.source] + 1, depth[edge.target])]
        for name, level in zip(between, range(depth[edge.source] + 1, depth[edge.target]), strict=True):
            rows[level].append(name)
        chains[pair] = [edge.source, *between, edge.target]
    return chains


def _half(name: str) -> float:
    return (PASS_WIDTH if name.startswith("\0") else NODE_WIDTH) / 2


def _order(rows: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    """Sort each layer by the mean place of its neighbours above, then below, a few times (Sugiyama's barycentres)."""
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    for sweep in range(SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            place = {name: i / max(len(r) - 1, 1) for r in rows for i, name in enumerate(r)}
            row.sort(key=lambda name: _mean([place[n] for n in near.get(name, [])], place[name]))


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _place(rows: list[list[str]], links: Sequence[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """x by pulling each node towards its neighbours' mean without overlap; y by layer."""
    near: dict[str, list[str]] = {}
    for a, b in links:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    x: dict[str, float] = {}
    for row in rows:
        at = -sum(_half(name) for name in row) - GAP_X * (len(row) - 1) / 2
        for name in row:
            x[name] = at + _half(name)
            at += 2 * _half(name) + GAP_X
    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = [_mean([x[n] for n in near.get(name, [])], x[name]) for name in row]
            for name, value in zip(row, _spread(row, wanted), strict=True):
                x[name] = value
    left = min((x[name] - _half(name) for name in x), default=0) - MARGIN
    return {
        name: (x[name] - left, MARGIN + NODE_HEIGHT / 2 + level * (NODE_HEIGHT + GAP_Y))
        for level, row in enumerate(rows)
        for name in row
    }


def _spread(row: Sequence[str], wanted: Sequence[float]) -> list[float]:
    """Places close to ``wanted`` in this order without overlap: the mean of packing from the left and from the right."""
    left, right = list(wanted), list(wanted)
    for i in range(1, len(row)):
        left[i] = max(left[i], left[i - 1] + _half(row[i - 1]) + GAP_X + _half(row[i]))
    for i in range(len(row) - 2, -1, -1):
        right[i] = min(right[i], right[i + 1] - _half(row[i + 1]) - GAP_X - _half(row[i]))
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def draw(nodes: Sequence[Node], edges: Sequence[Edge], description: str) -> Markup:
    """The graph as SVG; ``description`` is its text for screen readers."""
    layout = lay_out(nodes, edges)
    roles: dict[tuple[str, str], list[str]] = {}
    for edge in edges:
        roles.setdefault((edge.source, edge.target), []).append(edge.label)
    titles = {node.id: node.title for node in nodes}
    parts = [
        _edge(route, f"{titles[pair[0]]} is {', '.join(roles[pair])} of {titles[pair[1]]}")
        for pair, route in layout.routes.items()
    ]
    parts += [_node(node, *layout.centres[node.id]) for node in nodes]
    return Markup(
        '<svg viewBox="0 0 {} {}" style="--natural:{}px" class="graph" role="img" aria-label="{}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0.5L7.5 4L0 7.5Z" class="arrow"/></marker></defs>{}</svg>'
    ).format(f"{layout.width:.0f}", f"{layout.height:.0f}", f"{layout.width:.0f}", description, Markup("").join(parts))


def _edge(route: Sequence[tuple[float, float]], title: str) -> Markup:
    """Smooth from below the source to above the target, straight down through the layers between."""
    half = NODE_HEIGHT / 2
    x, y = route[0]
    path = f"M{x:.0f} {y + half:.0f}"
    for i, (x_next, y_next) in enumerate(route[1:], 1):
        last = i == len(route) - 1
        top = y_next - half - (1 if last else 0)
        start = y + half
        bend = (top - start) / 2
        path += f"C{x:.0f} {start + bend:.0f} {x_next:.0f} {top - bend:.0f} {x_next:.0f} {top:.0f}"
        if not last:
            path += f"V{y_next + half:.0f}"
        x, y = x_next, y_next
    return Markup('<path class="edge" marker-end="url(#arrow)" d="{}"><title>{}</title></path>').format(path, title)


def _node(node: Node, x: float, y: float) -> Markup:
    left, top = x - NODE_WIDTH / 2, y - NODE_HEIGHT / 2
    texts = [
        Markup('<text x="{}" y="{}" class="node-title">{}</text>').format(
            f"{left + 10:.1f}", f"{top + 19:.1f}", _fit(node.title, 23)
        )
    ]
    texts += [
        Markup('<text x="{}" y="{}" class="node-line">{}</text>').format(
            f"{left + 10:.1f}", f"{top + 36 + 15 * i:.1f}", _fit(line, 29)
        )
        for i, line in enumerate(node.lines[:2])
    ]
    return Markup(
        '<g class="node {}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="7"/>{}</g>'
    ).format(
        node.kind,
        node.tooltip or node.title,
        f"{left:.1f}",
        f"{top:.1f}",
        f"{NODE_WIDTH:g}",
        f"{NODE_HEIGHT:g}",
        Markup("").join(texts),
    )


def _fit(text: str, characters: int) -> str:
    """The text, shortened in its middle to what the box can hold."""
    if len(text) <= characters:
        return text
    head = (characters - 1) // 2
    return f"{text[:head]}…{text[-(characters - 1 - head) :]}"
