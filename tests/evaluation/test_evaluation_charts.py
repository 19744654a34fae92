"""Charts and graphs as SVG: ticks that cover the data, numbers that people read, nothing unescaped, boxes that do not overlap."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_runtime.evaluation.charts import Axis, Bar, Group, Series, bar_chart, histogram_chart, inline_bar, line_chart
from kd_runtime.evaluation.graph import NODE_WIDTH, Edge, Node, draw, lay_out, layers
from kd_runtime.evaluation.scales import Scale, byte_size, duration, log_ticks, nice_ticks, percent, short

HOSTILE = '<b>"&</b>'
numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers)
def test_ticks_cover_what_they_are_asked_for_and_are_few(a: float, b: float):
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high)
    assert ticks == sorted(ticks)
    assert 2 <= len(ticks) <= 13
    if high - low > 1e-6:
        slack = 1e-6 * (high - low)
        assert ticks[0] <= low + slack
        assert ticks[-1] >= high - slack


@given(st.floats(1, 1e6), st.floats(1, 1e6))
def test_log_ticks_cover_what_they_are_asked_for(a: float, b: float):
    low, high = sorted((a, b))
    ticks = log_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert len(ticks) <= 11


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (1.2345, "1.23"),
        (123.4, "123"),
        (12_345, "12.3k"),
        (2e-4, "2e-4"),
        (-3.0, "-3"),
        (float("nan"), "–"),
    ],
)
def test_numbers_are_short(value: float, text: str):
    assert short(value) == text


def test_shares_sizes_and_times_are_written_for_people():
    assert [percent(v).replace("\u202f", " ") for v in (0.723, 0.039, 0, 1)] == ["72 %", "3.9 %", "0 %", "100 %"]
    assert [byte_size(v) for v in (812, 4300, 98 << 20)] == ["812 B", "4.2 KiB", "98.0 MiB"]
    assert [duration(v) for v in (0.42, 48, 370, 7500)] == ["0.4 s", "48 s", "6 min 10 s", "2 h 05 min"]


def test_a_scale_clips_to_its_ends():
    scale = Scale(0, 10, 100, 200)
    assert [scale(v) for v in (-5, 0, 5, 10, 99)] == [100, 100, 150, 200, 200]
    assert Scale(1, 100, 0, 2, log=True)(10) == pytest.approx(1)


def charts() -> list[str]:
    series = [Series(HOSTILE, "student", [1, 2, 4], [0.1, 0.5, 0.4], [0, 0.4, 0.3], [0.2, 0.6, 0.5], dashed=True)]
    return [
        line_chart(series, Axis(HOSTILE, log=True), Axis(HOSTILE, percent), HOSTILE),
        line_chart([], Axis("x"), Axis("y"), "empty"),
        bar_chart(
            [Bar(HOSTILE, "teacher", 0.9, 0.8, 1.0, HOSTILE), Bar("b", "student", 0)], Axis("share", percent), HOSTILE
        ),
        histogram_chart([Group(HOSTILE, "baseline", [1, 0, 3])], [HOSTILE, "b", "c"], HOSTILE, HOSTILE),
        inline_bar(1.7),
        draw(
            [Node("a", HOSTILE, (HOSTILE,), "stage", HOSTILE), Node("b", "b", (), "stage")],
            [Edge("a", "b", HOSTILE)],
            HOSTILE,
        ),
    ]


@pytest.mark.parametrize("svg", charts())
def test_what_is_drawn_is_well_formed_and_escaped(svg: str):
    root = ET.fromstring(svg)
    assert root.tag == "svg"
    assert not list(root.iter("b"))
    assert "NaN" not in svg.replace("NaN", "") + "".join(root.attrib.values())


def test_a_gap_in_the_data_is_a_gap_in_the_line():
    series = [Series("a", "kd", [1, 2, 3, 4, 5], [1, 2, float("nan"), 2, 1])]
    lines = [
        p
        for p in ET.fromstring(line_chart(series, Axis("x"), Axis("y"), "d")).iter("path")
        if "line" in p.get("class", "")
    ]
    assert len(lines) == 2


def test_every_step_can_be_pointed_at():
    series = [Series("a", "kd", list(range(500)), [0.5] * 500)]
    titles = [t.text for t in ET.fromstring(line_chart(series, Axis("step"), Axis("y"), "d")).iter("title")]
    assert 60 <= len(titles) <= 80
    assert titles[0] == "step: 0\na: 0.5"


def nodes(*names: str) -> list[Node]:
    return [Node(name, name, (), "stage") for name in names]


def test_a_node_lies_below_all_that_it_was_made_from():
    edges = [Edge("a", "b", ""), Edge("b", "c", ""), Edge("a", "c", ""), Edge("x", "c", "")]
    assert layers(nodes("a", "x", "b", "c"), edges) == {"a": 0, "b": 1, "c": 2, "x": 1}


def graphs() -> st.SearchStrategy[tuple[int, set[tuple[int, int]]]]:
    """A number of nodes, and pairs of them."""
    pairs = lambda n: st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30)  # noqa: E731
    return st.integers(1, 14).flatmap(lambda n: st.tuples(st.just(n), pairs(n)))


@given(graphs())
def test_boxes_never_overlap_and_edges_run_downwards(drawn: tuple[int, set[tuple[int, int]]]):
    count, pairs = drawn
    names = [f"n{i}" for i in range(count)]
    edges = [Edge(names[a], names[b], "") for a, b in sorted(pairs) if a < b]
    layout = lay_out(nodes(*names), edges)
    for one, other in itertools.combinations(layout.centres.values(), 2):
        assert one[1] != other[1] or abs(one[0] - other[0]) >= NODE_WIDTH
    for route in layout.routes.values():
        assert [y for _, y in route] == sorted({y for _, y in route})
    for x, y in layout.centres.values():
        assert NODE_WIDTH / 2 <= x <= layout.width - NODE_WIDTH / 2
        assert 0 < y < layout.height
