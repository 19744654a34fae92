"""Text from a cluster, made safe for a terminal: a pod's log or a status message must not move the cursor or set a title."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|\x1b[ -/]*[0-~]?"  # all other escapes
    r"|\x9b[0-?]*[ -/]*[@-~]?"  # CSI in one character
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def line(text: str) -> str:
    """``text`` as one line without control characters: what a progress bar wrote over itself is left as it ended."""
    shown = _SEQUENCE.sub("", text.rstrip("\r\n")).rpartition("\r")[2]
    return _CONTROL.sub("", shown.replace("\n", " "))
