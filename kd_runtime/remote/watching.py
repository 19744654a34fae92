"""`kd watch`: a job's table, live, until the job ends; plain lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kd_runtime.api.failures import ExitClass
from kd_runtime.remote.cluster import Cluster, NotFound, Unanswered
from kd_runtime.remote.jobs import RemoteJob, find_job, list_jobs
from kd_runtime.remote.outcome import outcome
from kd_runtime.remote.plain import line
from kd_runtime.remote.view import amount, explanation, job_view, jobs_table, phase_of, remedy, speed, time_left

LOOK_SECONDS = 2.0
"""Between two looks at one job; of a namespace's jobs, thrice that."""
REDRAWS_PER_SECOND = 4
Sleep = Callable[[float], None]


class Deleted(Exception):
    """The job that was watched is gone."""


def watch_job(cluster: Cluster, name: str, console: Console, *, sleep: Sleep = time.sleep) -> ExitClass:
    """Show the job until it ends; the class it ended with. A job that is deleted meanwhile ended as if killed (143).

    Raises:
        NotFound: there is no such job.
    """
    screen = Screen(find_job(cluster, name), console)
    uid = screen.job.uid
    try:
        with screen:
            while (ended := outcome(screen.job)) is None:
                sleep(LOOK_SECONDS)
                screen.show(*look(cluster, name, uid, screen.job))
    except Deleted:
        console.print(Text(f"{name} was deleted", style="red"))
        return ExitClass.Killed
    console.print(farewell(screen.job, ended))
    return ended


def look(cluster: Cluster, name: str, uid: str, last: RemoteJob) -> tuple[RemoteJob, str]:
    """The job now, or as it was last and why it cannot be read. Raises Deleted."""
    try:
        job = find_job(cluster, name)
    except NotFound:
        raise Deleted(name) from None
    except Unanswered as error:
        return last, str(error)
    if job.uid != uid:
        raise Deleted(name)
    return job, ""


class Screen:
    """Where a job is shown: drawn again several times a second on a terminal, a line a change elsewhere."""

    def __init__(self, job: RemoteJob, console: Console):
        self.job, self.console = job, console
        self._seen, self._trouble, self._said = datetime.now(UTC), "", ""
        self._live = Live(
            get_renderable=self._draw,
            console=console,
            refresh_per_second=REDRAWS_PER_SECOND,
            vertical_overflow="visible",
        )

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start()
        else:
            self._say()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, job: RemoteJob, trouble: str) -> None:
        """The job as it is now; ``trouble``: why that is not known."""
        if not trouble:
            self.job, self._seen = job, datetime.now(UTC)
        self._trouble = trouble
        if not self.console.is_terminal:
            self._say()

    def _draw(self) -> RenderableType:
        view = job_view(
            self.job,
            datetime.now(UTC),
            self._seen,
            width=self.console.width,
            ascii_only=self.console.options.ascii_only,
        )
        return Group(view, Text(f"  {self._trouble}", style="yellow")) if self._trouble else view

    def _say(self) -> None:
        said = self._trouble or change_line(self.job, self._seen)
        if said != self._said:
            self._said = said
            self.console.print(Text(f"{self._seen:%H:%M:%S} {said}"), soft_wrap=True)


def change_line(job: RemoteJob, now: datetime) -> str:
    """One line that changes when something worth saying does."""
    stage = next((s for s in job.stages if s.name == job.status.current_stage), None)
    words = [job.name, phase_of(job)]
    if stage is not None and not job.ended:
        left = time_left(stage, now, now - now) if stage.progress else ""
        rate = speed(stage.progress)
        words += [stage.name, stage.state or "", amount(stage), f"{rate} tokens/s" if rate else "", left]
    return " ".join(line(word) for word in words if word) + f" ({explanation(job)})"


def farewell(job: RemoteJob, ended: ExitClass) -> Text:
    """How it ended, and what to type next."""
    if ended is ExitClass.Done:
        student = job.status.artifacts.student if job.status.artifacts else None
        text = Text.assemble(("succeeded", "bold green"), f"  {line(student)}" if student else "")
        return text.append(f"\nreport     kubectl kd report {job.name}")
    text = Text.assemble(("failed", "bold red"), f"  {explanation(job)}")
    if remedy(job):
        text.append(f"\nwhat to do {remedy(job)}")
    failed = job.failed_part
    if failed:
        text.append(f"\nlog        kubectl kd logs {job.name} {failed[0]}")
    return text


def watch_namespace(cluster: Cluster, console: Console, *, sleep: Sleep = time.sleep) -> None:
    """Show all jobs of the namespace until Ctrl-C; where the output is no terminal, once."""

    def table(jobs: list[RemoteJob]) -> RenderableType:
        if not jobs:
            return Text(f"no job in namespace {cluster.namespace} ({cluster.where})", style="dim")
        return jobs_table(jobs, datetime.now(UTC), width=console.width)

    jobs = list_jobs(cluster)
    if not console.is_terminal:
        console.print(table(jobs))
        return
    with Live(table(jobs), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            sleep(3 * LOOK_SECONDS)
            try:
                live.update(table(list_jobs(cluster)), refresh=True)
            except Unanswered as error:
                live.update(Group(table(jobs), Text(str(error), style="yellow")), refresh=True)
