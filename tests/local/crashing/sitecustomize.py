"""Loaded at the start of each interpreter that has this folder in PYTHONPATH: one of them is to die in the midst of its work.

KD_TEST_CRASH is `<part of the command line>|<part of a path>|<count>`: the process dies by SIGKILL as it opens such a path for
the ``count``-th time.
"""

import os
import signal
import sys

command, path, count = os.environ.get("KD_TEST_CRASH", "\0||0").split("|")
seen = 0


def die(event: str, arguments: tuple[object, ...]) -> None:
    global seen
    if event == "open" and path in str(arguments[0]):
        seen += 1
        if seen == int(count):
            os.kill(os.getpid(), signal.SIGKILL)


if command in " ".join(sys.orig_argv):
    sys.addaudithook(die)
