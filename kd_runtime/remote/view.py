"""What a job looks like on a terminal: pure, from a job and a moment to something that rich prints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kd_runtime.api.reasons import REMEDIES, ConditionType, Reason
from kd_runtime.api.status import Condition, RunStatus, StageProgress, StageStatus
from kd_runtime.local.tables import duration, number
from kd_runtime.remote.jobs import RemoteJob, moment
from kd_runtime.remote.plain import line

BAR_WIDTH, NARROW_BAR_WIDTH = 20, 8
NARROW = 116
"""Columns below which tables leave out what is said elsewhere too."""
COLOURS = {
    "Succeeded": "green",
    "Skipped": "green",
    "Failed": "red",
    "Backoff": "yellow",
    "Suspending": "yellow",
    "Suspended": "yellow",
    "Draining": "yellow",
    "Running": "cyan",
    "Starting": "cyan",
    "Planning": "cyan",
    "Deleting": "red",
}
SIGNS = {
    "Succeeded": ("✔", "+"),
    "Skipped": ("✔", "+"),
    "Failed": ("✘", "x"),
    "Running": ("●", "*"),
    "Starting": ("◐", "*"),
    "Draining": ("◑", "~"),
    "Backoff": ("↻", "r"),
    "Queued": ("○", "o"),
}
"""Before a state, on a terminal with and without Unicode."""
WAITING = ("·", ".")
DONE = ("Succeeded", "Skipped")
AT_WORK = ("Starting", "Running", "Draining")


def job_view(job: RemoteJob, now: datetime, seen: datetime, *, width: int = 120, ascii_only: bool = False) -> Group:
    """A headline, the stages as a table with bars, and what to do where something is to be done.

    ``seen`` is when the status was read: a time left counts down from there to ``now``.
    """
    parts: list[RenderableType] = [headline(job, now), Text(f"  {explanation(job)}", style="dim")]
    parts.append(Padding(stage_table(job, now, now - seen, width, ascii_only), (0, 0, 0, 1)))
    parts += notes(job, now)
    todo = remedy(job)
    if todo:
        parts.append(Text.assemble(("  what to do  ", "bold"), todo))
    return Group(*parts)


def headline(job: RemoteJob, now: datetime) -> Text:
    """`math-tutor  Running  stage student  1.5 GPU-h  12 min`."""
    phase = phase_of(job)
    words = Text.assemble((line(job.name), "bold"), "  ", (phase, f"bold {COLOURS.get(phase, 'white')}"))
    status = job.status
    if status.current_stage and not job.ended:
        words.append(f"  stage {line(status.current_stage)}")
    if status.usage and status.usage.gpu_hours:
        words.append(f"  {line(status.usage.gpu_hours)} GPU-h")
    if status.attempts and (status.attempts.counted or status.attempts.disruptions):
        words.append(
            f"  {_count(status.attempts.counted, 'failed attempt')}, {_count(status.attempts.disruptions, 'disruption')}"
        )
    started = moment(status.start_time) or job.created
    if started:
        words.append(f"  {age((moment(status.completion_time) or now) - started)}", style="dim")
    return words


def phase_of(job: RemoteJob) -> str:
    """One word: what the operator says, but for what it cannot have said yet."""
    if job.deleting:
        return "Deleting"
    return line(job.status.phase or "Pending")


def explanation(job: RemoteJob) -> str:
    """The sentence that says most: why it failed, else why it is not ready."""
    for kind in (ConditionType.Failed, ConditionType.Complete, ConditionType.Suspended, ConditionType.Ready):
        found = job.condition(kind)
        if found is not None and (found.status == "True" or kind == ConditionType.Ready):
            message = line(without_remedy(found))
            return f"{found.reason}: {message}" if message else line(found.reason)
    return "not looked at yet: the operator has written no status"


def without_remedy(condition: Condition) -> str:
    """Its message without what to do, which a failed job's ends with and which is shown by itself."""
    told = REMEDIES[Reason(condition.reason)] if condition.reason in REMEDIES else ""
    return condition.message.removesuffix(told).rstrip()


def remedy(job: RemoteJob) -> str:
    """What to do, where a person can do something; nothing while all goes well."""
    for kind in (ConditionType.Failed, ConditionType.Stalled, ConditionType.Suspended, ConditionType.Degraded):
        found = job.condition(kind)
        if found is not None and found.status == "True" and found.reason in REMEDIES:
            return REMEDIES[Reason(found.reason)]
    return ""


def stage_table(job: RemoteJob, now: datetime, since: timedelta, width: int, ascii_only: bool) -> Table:
    """A row a teacher and a row a stage; on a narrow terminal without type, loss and attempt."""
    wide = width >= NARROW
    table = _table(("stage", *(("type",) if wide else ()), "state"))
    table.add_column("progress", no_wrap=True, width=BAR_WIDTH if wide else NARROW_BAR_WIDTH)
    for heading in ("", "tokens/s", *(("loss",) if wide else ()), "time", *(("attempt",) if wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for teacher in job.status.teachers:
        ready = f"{teacher.ready}/{teacher.desired} ready" if teacher.desired else ""
        state = _state(teacher, ascii_only)
        _add(table, wide, line(teacher.name), "teacher", state, "", ready, "", "", "", _attempt(teacher))
    for stage in job.stages:
        rate = speed(stage.progress) if stage.state in AT_WORK else ""
        _add(
            table, wide, line(stage.name), line(stage.type or ""), _state(stage, ascii_only), bar(stage),
            amount(stage, wide), rate, _loss(stage), time_left(stage, now, since), _attempt(stage),
        )  # fmt: skip
    return table


def _table(left: Sequence[str]) -> Table:
    """A table without lines, so that it fits; its first columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    return table


ONLY_WIDE = (1, 6, 8)
"""Columns for type, loss and attempt."""


def _add(table: Table, wide: bool, *cells: RenderableType) -> None:
    table.add_row(*(cell for number, cell in enumerate(cells) if wide or number not in ONLY_WIDE))


def notes(job: RemoteJob, now: datetime) -> list[RenderableType]:
    """A line for each part that waits or failed for a reason worth saying."""
    lines: list[RenderableType] = []
    for name, run in job.parts().items():
        note = _note(run, now)
        if note and note != explanation(job):
            lines.append(Text.assemble((f"  {line(name)}  ", "bold"), (note, COLOURS.get(run.state or "", "dim"))))
    return lines


def jobs_table(jobs: Sequence[RemoteJob], now: datetime, *, width: int = 120) -> Table:
    """A row a job; on a narrow terminal without speed, GPU hours and the reason of its state."""
    wide = width >= NARROW
    table = _table(("job", "phase", "stage"))
    table.add_column("progress", no_wrap=True, width=BAR_WIDTH if wide else NARROW_BAR_WIDTH)
    for heading in (*(("tokens/s",) if wide else ()), "left", *(("GPU-h",) if wide else ()), "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("", no_wrap=True, style="dim")
    for job in jobs:
        stage = next((s for s in job.stages if s.name == job.status.current_stage and not job.ended), None)
        working = stage if stage is not None and stage.state in AT_WORK else None
        phase, usage = phase_of(job), job.status.usage
        cells: list[RenderableType] = [
            line(job.name),
            Text(phase, style=COLOURS.get(phase, "")),
            line(stage.name) if stage else "",
        ]
        cells += [overall_bar(job), *([speed(working.progress) if working else ""] if wide else [])]
        cells.append(time_left(working, now, timedelta()) if working else "")
        cells += [line(usage.gpu_hours or "") if usage else ""] if wide else []
        cells.append(age(now - job.created) if job.created else "")
        cells += [explanation(job).partition(":")[0]] if wide else []
        table.add_row(*cells)
    return table


def overall_bar(job: RemoteJob) -> ProgressBar:
    """Stages done, and the part of the one at work."""
    done = sum(1.0 if s.state in DONE else _share(s.progress) for s in job.stages)
    return _bar(done / (len(job.stages) or 1))


def bar(stage: StageStatus) -> RenderableType:
    """Of one stage: full when done, moving when nothing has been counted yet."""
    if stage.state in DONE:
        return _bar(1.0)
    if stage.progress and stage.progress.total:
        return _bar(_share(stage.progress))
    if stage.state in AT_WORK:
        return ProgressBar(total=None, pulse=True, pulse_style="cyan")
    return ""


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="green")


def amount(stage: StageStatus, wide: bool = True) -> str:
    """`1,024/2,400 rows` at work; what came of it when it is over."""
    progress, rows = stage.progress, stage.rows
    if stage.state == "Skipped":
        return "not needed" if stage.reason == Reason.NotNeeded else "found"
    if stage.state == "Succeeded" and rows and rows.done:
        return f"{rows.done:,} rows" + (f", {rows.rejected:,} rejected" if rows.rejected and wide else "")
    if progress is None or not progress.total or stage.state == "Waiting":
        return ""
    return f"{progress.completed:,}/{progress.total:,} {line(progress.unit or '')}".rstrip()


def speed(progress: StageProgress | None) -> str:
    """`1,234`, tokens a second."""
    rate = progress.tokens_per_second if progress else None
    return number(round(rate)) if rate else ""


def time_left(stage: StageStatus, now: datetime, since: timedelta) -> str:
    """`4 min left` while it runs, how long it took when it is over."""
    times = stage.times
    started, finished = (moment(times.started), moment(times.finished)) if times else (None, None)
    if started and finished:
        return duration((finished - started).total_seconds())
    if stage.state not in AT_WORK:
        return ""
    left = stage.progress.eta_seconds if stage.progress else None
    if left is not None:
        return f"{duration(max(0.0, left - since.total_seconds()))} left"
    return f"for {duration((now - started).total_seconds())}" if started else ""


def age(span: timedelta) -> str:
    """As `duration`, but days where there are some."""
    return f"{span.days} d {span.seconds // 3600} h" if span.days >= 2 else duration(span.total_seconds())


def until(when: datetime, now: datetime) -> str:
    """`in 25 s`, or `now`."""
    return f"in {duration((when - now).total_seconds())}" if when > now else "now"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _share(progress: StageProgress | None) -> float:
    return min(1.0, progress.completed / progress.total) if progress and progress.total else 0.0


def _state(run: RunStatus, ascii_only: bool) -> Text:
    state = line(run.state or "Waiting")
    return Text(f"{SIGNS.get(state, WAITING)[ascii_only]} {state}", style=COLOURS.get(state, "dim"))


def _loss(stage: StageStatus) -> str:
    return f"{stage.progress.loss:.3f}" if stage.progress and stage.progress.loss is not None else ""


def _attempt(run: RunStatus) -> str:
    return str(run.attempt) if run.attempt else ""


def _note(run: RunStatus, now: datetime) -> str:
    """Why it waits or failed; empty where its state says all."""
    if run.state == "Backoff":
        when = moment(run.next_attempt_time)
        return f"again {until(when, now)}: {_because(run)}" if when else _because(run)
    if run.state in (*DONE, "Waiting") or run.reason in (None, "", run.state):
        return ""
    return _because(run)


def _because(run: RunStatus) -> str:
    return ": ".join(line(word) for word in (run.reason, run.message) if word)
