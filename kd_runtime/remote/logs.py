"""`kd logs`: what all pods of a stage wrote, each line behind its pod's name, in the order of time."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from kd_runtime.api.failures import KDError, SettingsError
from kd_runtime.remote.cluster import Cluster, NotFound, Unanswered, near
from kd_runtime.remote.jobs import PLAN, TEACHER, RemoteJob, find_job, stage_names, teacher_names
from kd_runtime.remote.plain import line
from kd_runtime.remote.pods import CORE, Pod, list_pods

STYLES = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
LOOK_SECONDS = 2.0
ENDED = ("Succeeded", "Skipped", "Failed")


@dataclass(frozen=True)
class LogLine:
    """One line: when it was written (RFC 3339), by which pod, what."""

    time: str
    pod: str
    text: str


def chosen_part(job: RemoteJob, part: str | None) -> str:
    """Whose log: what was asked for, else the stage at work, else what failed, else what ran last.

    Raises:
        SettingsError: the job has no such part.
    """
    stages, teachers = stage_names(job.spec), teacher_names(job.spec)
    if part is not None:
        known = [PLAN, TEACHER, *teachers, *stages] if teachers else [PLAN, *stages]
        if part not in known:
            raise SettingsError(f"{job.name} has no stage {part}; {near(part, list(dict.fromkeys(known)), 'it has')}")
        return part
    if job.failed_part:
        return job.failed_part[0]
    if job.status.current_stage:
        return job.status.current_stage
    ran = [stage.name for stage in job.status.stages if stage.attempt]
    return ran[-1] if ran else PLAN


def of_part(pods: Iterable[Pod], part: str, attempt: int | None) -> list[Pod]:
    """Pods of one stage, of the plan, or of a teacher (`teacher`: all of them), of the newest attempt that has any."""
    mine = [pod for pod in pods if pod.stage == part or (part == TEACHER and pod.component == TEACHER)]
    newest: dict[str, int] = {}
    for pod in mine:
        newest[pod.stage] = max(newest.get(pod.stage, 0), pod.attempt)
    return [pod for pod in mine if pod.attempt == (newest[pod.stage] if attempt is None else attempt)]


class Printer:
    """Prints lines behind the short name of their pod, a colour each."""

    def __init__(self, console: Console):
        self._console = console
        self._names: dict[str, str] = {}

    def name(self, pod: Pod) -> None:
        """Give the pod a short name: its stage and index, told apart by the end of its name where another has that."""
        short = pod.stage if pod.index is None else f"{pod.stage}-{pod.index}"
        taken = short in self._names.values()
        self._names.setdefault(
            pod.name, f"{short}-{pod.name.rpartition('-')[2]}" if taken or pod.index is None else short
        )

    def print(self, one: LogLine) -> None:
        """One line."""
        names = list(self._names)
        style = STYLES[names.index(one.pod) % len(STYLES)]
        width = max(map(len, self._names.values()))
        text = Text.assemble((f"{self._names[one.pod]:<{width}} │ ", style), one.text)
        self._console.print(text, soft_wrap=True, highlight=False)


def show_logs(
    cluster: Cluster, name: str, part: str | None, console: Console, *, follow: bool = False, previous: bool = False,
    tail: int | None = None, attempt: int | None = None,
) -> None:  # fmt: skip
    """Print the log of one part of a job; with ``follow`` until that part has ended.

    Raises:
        SettingsError: there is no such part, or no pod of it is left.
    """
    job = find_job(cluster, name)
    part = chosen_part(job, part)
    printer = Printer(console)
    if follow:
        _follow(cluster, job, part, printer, tail, attempt)
        return
    pods = of_part(list_pods(cluster, job), part, attempt)
    if not pods:
        raise SettingsError(no_pods(job, part, attempt))
    with ExitStack() as streams:
        sources = []
        for pod in pods:
            printer.name(pod)
            if pod.started:
                sources.append(streams.enter_context(_open(cluster, pod, previous=previous, tail=tail)))
        if not sources:
            raise SettingsError(f"{part}: no pod of it has started; `kubectl kd explain {name}` says why")
        for one in heapq.merge(*sources, key=lambda found: found.time):
            printer.print(one)


def no_pods(job: RemoteJob, part: str, attempt: int | None) -> str:
    """Why there is no log, and what to do."""
    which = f" of attempt {attempt}" if attempt is not None else ""
    state = job.parts()[part].state if part in job.parts() else None
    if state == "Skipped":
        return f"{part}: no pod ran, its artifact was found or is not needed"
    if state in ("Succeeded", "Failed"):
        return f"{part}: no pod{which} is left, they go with the job's retention; raise keepPodsOnFailureSeconds in the next job"
    return f"{part}: no pod{which} is there yet; `kubectl kd explain {job.name}` says why, -f waits for it"


class _Opened:
    """A pod's log as an iterator of lines, closed with the block."""

    def __init__(self, cluster: Cluster, pod: Pod, parameters: dict[str, object]):
        self._pod = pod
        self._stream = cluster.stream(cluster.url("pods", pod.name, api=CORE) + "/log", **parameters)

    def __enter__(self) -> Iterator[LogLine]:
        return (_parsed(self._pod.name, text) for text in self._stream.__enter__())

    def __exit__(self, *error: object) -> None:
        self._stream.__exit__(*error)  # type: ignore[arg-type]


def _open(
    cluster: Cluster,
    pod: Pod,
    *,
    follow: bool = False,
    previous: bool = False,
    tail: int | None = None,
    since: str = "",
) -> _Opened:
    parameters: dict[str, object] = {"timestamps": "true"}
    if pod.main_container:
        parameters["container"] = pod.main_container
    for key, value in (("follow", follow), ("previous", previous)):
        if value:
            parameters[key] = "true"
    if tail is not None and not since:
        parameters["tailLines"] = tail
    if since:
        parameters["sinceTime"] = since
    return _Opened(cluster, pod, parameters)


def _parsed(pod: str, text: str) -> LogLine:
    when, _, rest = text.partition(" ")
    return LogLine(when, pod, line(rest))


class _Follower(threading.Thread):
    """Reads one pod's log as it grows, and goes on where a connection broke."""

    def __init__(self, cluster: Cluster, pod: Pod, lines: queue.Queue[LogLine | KDError], tail: int | None):
        super().__init__(name=f"log {pod.name}", daemon=True)
        self._cluster, self._pod, self._lines, self._tail = cluster, pod, lines, tail
        self._last = ""

    def run(self) -> None:
        """Until the container's log ends."""
        while True:
            try:
                with _open(self._cluster, self._pod, follow=True, tail=self._tail, since=self._last) as found:
                    for one in found:
                        if one.time > self._last:  # sinceTime counts whole seconds: some lines come twice
                            self._last = one.time
                            self._lines.put(one)
                return
            except Unanswered:
                time.sleep(LOOK_SECONDS)
            except NotFound:  # the pod was deleted
                return
            except KDError as error:
                self._lines.put(error)
                return


def _follow(
    cluster: Cluster, job: RemoteJob, part: str, printer: Printer, tail: int | None, attempt: int | None
) -> None:
    lines: queue.Queue[LogLine | KDError] = queue.Queue()
    readers: dict[str, _Follower] = {}
    over = False
    while not over or any(reader.is_alive() for reader in readers.values()) or not lines.empty():
        if not over:
            over = _look(
                cluster, job, part, attempt, readers, lambda pod: _Follower(cluster, pod, lines, tail), printer
            )
        _print_until(time.monotonic() + LOOK_SECONDS, lines, printer, readers, over)
    if not readers:
        raise SettingsError(no_pods(find_job(cluster, job.name), part, attempt))


def _look(
    cluster: Cluster, job: RemoteJob, part: str, attempt: int | None, readers: dict[str, _Follower],
    reader: Callable[[Pod], _Follower], printer: Printer,
) -> bool:  # fmt: skip
    """Begin to read the pods that are new; whether the part has ended, so that none will follow."""
    try:
        now = find_job(cluster, job.name)
        pods = of_part(list_pods(cluster, job), part, attempt)
    except Unanswered:
        return False
    for pod in pods:
        if pod.name not in readers and pod.started:
            printer.name(pod)
            readers[pod.name] = reader(pod)
            readers[pod.name].start()
    run = now.parts().get(part)
    return now.uid != job.uid or now.ended or now.deleting or (run is not None and run.state in ENDED)


def _print_until(
    deadline: float, lines: queue.Queue[LogLine | KDError], printer: Printer, readers: dict[str, _Follower], over: bool
) -> None:
    while (left := deadline - time.monotonic()) > 0:
        try:
            one = lines.get(timeout=min(left, 0.2))
        except queue.Empty:
            if over and not any(reader.is_alive() for reader in readers.values()):
                return
            continue
        if isinstance(one, KDError):
            raise one
        printer.print(one)
