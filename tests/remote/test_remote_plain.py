"""What a pod or a status says cannot command the terminal that shows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_runtime.remote.plain import line


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1bP1;2q data\x1b\\after", "after"),
        (" 10 %\r 50 %\r100 %\n", "100 %"),
        ("a\x00b\x08c\x7f", "abc"),
        ("\x9b31mred", "red"),
        ("naïve 日本 ✔\ttab", "naïve 日本 ✔\ttab"),
        ("two\nlines", "two lines"),
        ("right-to-left \u202eoverride", "right-to-left override"),
        ("cut off \x1b", "cut off "),
    ],
)
def test_a_line_is_what_it_says_without_commands(written: str, shown: str) -> None:
    assert line(written) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b[]P\\\x07\r\n"), max_size=60))
def test_no_control_character_is_left(written: str) -> None:
    assert not [c for c in line(written) if (ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160]
