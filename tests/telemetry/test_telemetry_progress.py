"""Progress reaches whoever listens, and a run is unharmed where nobody does."""

from __future__ import annotations

import io
import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kd_runtime.local.display import Display, ProgressServer
from kd_runtime.telemetry import progress
from kd_runtime.telemetry.progress import Progress, Reporter, pause_seconds


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


@dataclass(frozen=True)
class Post:
    """What the operator got."""

    body: dict[str, Any]
    headers: dict[str, str]


class Operator:
    """An HTTP server that keeps posts and answers as it is told: 204, or what was put into ``answers``."""

    def __init__(self) -> None:
        self.posts: queue.Queue[Post] = queue.Queue()
        self.answers: list[tuple[int, dict[str, str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = owner.answers.pop(0) if owner.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                owner.posts.put(Post(json.loads(body), dict(self.headers)))

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/progress/team-a/tutor"

    def next(self) -> Post:
        return self.posts.get(timeout=20)


@pytest.fixture
def operator() -> Iterator[Operator]:
    made = Operator()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    monkeypatch.setenv("KD_PROGRESS_TOKEN_FILE", str(path))
    return path


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "CLUSTER_INTERVAL_SECONDS", 0.01)


@pytest.mark.usefixtures("soon")
def test_a_token_that_kubelet_replaced_is_read_again(operator: Operator, token: Path) -> None:
    with closing(Reporter("answers", url=operator.url)) as reporter:
        reporter.update(1, 10, "rows")
        assert operator.next().headers["Authorization"] == "Bearer first"
        token.write_text("second\n")
        reporter.update(2, 10, "rows")
        assert operator.next().headers["Authorization"] == "Bearer second"


@pytest.mark.usefixtures("token")
def test_on_a_cluster_what_comes_within_ten_seconds_waits_but_the_last_is_sent_at_once(operator: Operator) -> None:
    reporter = Reporter("answers", url=operator.url)
    reporter.update(1, 10, "rows")
    assert operator.next().body["completed"] == 1
    for completed in range(2, 11):
        reporter.update(completed, 10, "rows")
    reporter.close()
    assert operator.next().body["completed"] == 10
    assert operator.posts.empty(), "the nine in between were posted one by one"


@pytest.mark.usefixtures("soon", "token")
def test_a_report_that_was_refused_is_sent_again_later(operator: Operator) -> None:
    operator.answers = [(503, {}), (429, {"Retry-After": "0"})]
    with closing(Reporter("answers", url=operator.url)) as reporter:
        reporter.update(1, 10, "rows")
        assert [operator.next().body["completed"] for _ in range(3)] == [1, 1, 1]


@pytest.mark.usefixtures("soon", "token")
def test_who_asks_for_time_is_left_alone_even_at_the_end(operator: Operator) -> None:
    operator.answers = [(429, {"Retry-After": "600"})]
    reporter = Reporter("answers", url=operator.url)
    reporter.update(1, 10, "rows")
    operator.next()
    reporter.update(10, 10, "rows")
    reporter.close()
    assert reporter._thread is not None
    reporter._thread.join(20)
    assert not reporter._thread.is_alive()
    assert operator.posts.empty()


def test_a_listener_that_fails_is_asked_ever_more_seldom() -> None:
    pauses = [pause_seconds(10.0, failures, 0.0) for failures in range(1, 6)]
    assert pauses == [20.0, 40.0, 80.0, 120.0, 120.0]
    assert pause_seconds(10.0, 1, 45.0) == 45.0, "it says itself when"
    assert pause_seconds(10.0, 1, 3.0) == 10.0
    assert pause_seconds(0.5, 500, 86_400.0) == 120.0


@pytest.mark.usefixtures("soon")
def test_without_its_token_file_nothing_is_sent_and_the_run_goes_on(operator: Operator, token: Path) -> None:
    token.unlink()
    reporter = Reporter("answers", url=operator.url)
    reporter.update(1, 10, "rows")
    reporter.close()
    assert operator.posts.empty()


def test_a_listener_that_never_answers_does_not_hold_up_the_end() -> None:
    """It takes connections and says nothing: `close` comes back, whatever the thread does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reporter = Reporter("answers", url=f"http://127.0.0.1:{silent.getsockname()[1]}/progress")
        reporter.update(1, 2, "rows")
        closed = threading.Thread(target=reporter.close)
        closed.start()
        closed.join(30)
        assert not closed.is_alive()


@pytest.mark.usefixtures("token")
def test_a_loss_that_is_no_number_and_a_message_of_any_length_do_not_stop_reporting(operator: Operator) -> None:
    with closing(Reporter("student", url=operator.url)) as reporter:
        reporter.update(1, 10, "steps", loss=float("nan"), message="ä" * 5000)
        post = operator.next()
    assert post.body["loss"] is None
    assert len(json.dumps(post.body)) < 4096


@pytest.mark.usefixtures("token")
def test_no_proxy_of_the_environment_sees_the_token(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(Reporter("answers", url=operator.url)) as reporter:
        reporter.update(1, 10, "rows")
        assert operator.next().body["stage"] == "answers"


@pytest.mark.parametrize("url", ["http://[::1", "nonsense", "http://"])
def test_an_address_that_is_none_is_no_harm(url: str) -> None:
    reporter = Reporter("answers", url=url)
    reporter.update(1, 2, "rows")
    reporter.close()
    assert reporter._thread is not None
    reporter._thread.join(20)
    assert not reporter._thread.is_alive()


def test_a_rate_is_that_of_the_work_and_not_of_the_loading_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    reporter, rates = Reporter("student", url=""), []
    for later, tokens in ((0.0, 0), (60.0, 500), (0.0, 700), (0.5, 900), (1.5, 1300), (2.0, 1700), (1.0, 0)):
        now += later
        reporter.update(1, 10, "steps", tokens=tokens)
        assert reporter._latest
        rates.append(reporter._latest.tokens_per_second)
    assert rates == [0.0, 0.0, 0.0, 0.0, 400.0, 300.0, 0.0]  # at the end rows are put together: no token is made


def test_lines_are_printed_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=100))
    display.report(Progress("answers", 0, 3, 10, "rows", 50, 25.0, 0.5))
    display.report(Progress("answers", 0, 4, 10, "rows", 60, 25.0, 0.5))
    assert out.getvalue().splitlines() == ["  answers: 3/10 rows 25 tok/s  loss 0.500"]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_stage_says_is_no_markup(terminal: bool) -> None:
    out, said = io.StringIO(), "[/x] [b]rejected[/b] :key:"
    with Display(Console(file=out, width=200, force_terminal=terminal, color_system=None)) as display:
        display.say(("answers", "bold"), f" {said}")
        display.report(Progress("answers", 0, 3, 10, "rows", message=said))
    assert out.getvalue().count(said) >= 2
