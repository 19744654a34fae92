"""What `kd run` shows: a bar for each running stage, fed by the same progress posts that pods send on a cluster."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from kd_runtime.telemetry.progress import Progress as Report

LINE_SECONDS = 15.0
"""Where the output is no terminal, a line at most this often."""
MAX_BODY_BYTES = 1 << 16


class Display:
    """Progress bars on a terminal, plain lines elsewhere. Thread-safe."""

    def __init__(self, console: Console):
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<10}", style="bold", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[tuple[str, int], TaskID] = {}
        self._said: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    def say(self, *parts: str | tuple[str, str]) -> None:
        """One line, above the bars, of texts or (text, style)."""
        self.console.print(Text.assemble(*parts))

    def start(self, stage: str, what: str) -> None:
        """A stage (or a teacher) starts: shown as busy until its first report."""
        with self._lock:
            self._tasks[stage, 0] = self._bars.add_task("", total=None, stage=stage, unit=what, rate="")
        if not self.console.is_terminal:
            self.say(f"  {stage}: {what}")

    def report(self, report: Report) -> None:
        """A progress post has come."""
        with self._lock:
            key = (report.stage, report.index)
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task("", total=None, stage=report.stage, unit="", rate="")
            if report.unit == "steps" and report.message == "training":
                self._steps[report.stage] = max(report.completed, self._steps.get(report.stage, 0))
            rate = _rate(report)
            self._bars.update(
                self._tasks[key], completed=report.completed, total=report.total or None, unit=report.unit, rate=rate
            )
        if not self.console.is_terminal:
            self._line(report, rate)

    def step(self, stage: str) -> int:
        """The last optimizer step that a stage reported since its start; 0 for none."""
        with self._lock:
            return self._steps.get(stage, 0)

    def stop(self, stage: str) -> None:
        """The stage has ended: its bars go."""
        with self._lock:
            self._steps.pop(stage, None)
            for key in [k for k in self._tasks if k[0] == stage]:
                self._bars.remove_task(self._tasks.pop(key))

    def _line(self, report: Report, rate: str) -> None:
        now = time.monotonic()
        if now - self._said.get(report.stage, 0.0) >= LINE_SECONDS:
            self._said[report.stage] = now
            self.say(f"  {report.stage}: {report.completed}/{report.total} {report.unit} {rate}".rstrip())


def _rate(report: Report) -> str:
    parts = []
    if report.tokens_per_second:
        parts.append(f"{report.tokens_per_second:,.0f} tok/s")
    if report.loss is not None:
        parts.append(f"loss {report.loss:.3f}")
    if report.message:
        parts.append(report.message)
    return "  ".join(parts)


class ProgressServer:
    """Receives the posts of this machine's stages on a loopback port."""

    def __init__(self, display: Display):
        def handle(body: bytes) -> None:
            display.report(Report(**json.loads(body)))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                try:
                    if length <= MAX_BODY_BYTES:
                        handle(self.rfile.read(length))
                    code = 204
                except (ValueError, TypeError):
                    code = 400
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet: the bars are what is shown."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/progress"

    def __enter__(self) -> ProgressServer:
        threading.Thread(target=self._server.serve_forever, name="progress-server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
