"""Progress reaches whoever listens, and a run is unharmed where nobody does."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from kd_runtime.local.display import Display, ProgressServer
from kd_runtime.telemetry.progress import Progress, Reporter


class Listener(Display):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.heard: list[Progress] = []
        self.any = threading.Event()

    def report(self, report: Progress) -> None:
        super().report(report)
        self.heard.append(report)
        self.any.set()


@pytest.mark.parametrize("token", [None, "secret"])
def test_reports_reach_the_server(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if token:
        monkeypatch.setenv("KD_PROGRESS_TOKEN", token)
    listener = Listener()
    with ProgressServer(listener) as server:
        reporter = Reporter("answers", 1, url=server.url)
        reporter.update(3, 10, "rows", tokens=50, loss=0.5)
        assert listener.any.wait(10)
        reporter.update(10, 10, "rows")
        reporter.close()
    assert (listener.heard[0].stage, listener.heard[0].completed, listener.heard[0].loss) == ("answers", 3, 0.5)
    assert listener.heard[-1].completed == 10


def test_nobody_listening_is_no_harm() -> None:
    reporter = Reporter("answers", url="http://127.0.0.1:9/progress")
    reporter.update(1, 2, "rows")
    reporter.close()


def test_every_update_is_heard_by_the_stall_watch() -> None:
    heard: list[int] = []
    reporter = Reporter("answers", url="", heard=lambda: heard.append(1))
    reporter.update(1, 2, "rows")
    reporter.update(2, 2, "rows")
    assert len(heard) == 2


def test_lines_are_printed_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=100))
    display.report(Progress("answers", 0, 3, 10, "rows", 50, 25.0, 0.5))
    display.report(Progress("answers", 0, 4, 10, "rows", 60, 25.0, 0.5))
    assert out.getvalue().splitlines() == ["  answers: 3/10 rows 25 tok/s  loss 0.500"]
