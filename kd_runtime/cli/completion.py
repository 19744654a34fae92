"""`kubectl_complete-kd`: the program that kubectl asks for completions of `kubectl kd`."""

from __future__ import annotations

import sys

from kd_runtime.cli import main as commands


def main() -> None:
    """Complete the words of the command line."""
    sys.argv = ["kd", "__complete", "--", *sys.argv[1:]]
    commands.main()
