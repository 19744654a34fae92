"""What generate and capture share: units of questions to a teacher, asked once each, committed one by one (contract 4)."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from kd_runtime.api.failures import (
    GANG_ORDER,
    DataError,
    KDError,
    SettingsError,
    TeacherError,
    TransientError,
    classify,
)
from kd_runtime.api.operation import PreflightMode
from kd_runtime.api.poison import SMOKE_UNIT, unit_position
from kd_runtime.api.teacher import Engine
from kd_runtime.artifacts.rejects import Reject
from kd_runtime.artifacts.rows import Row, RowsReader
from kd_runtime.artifacts.units import CommitRef, Pair, Unit, UnitStore, cut_units, uncovered, units_of
from kd_runtime.outbound.addresses import guard_of
from kd_runtime.planning.resolve import teacher_named
from kd_runtime.stages.context import StageContext
from kd_runtime.teachers.client import TeacherClient
from kd_runtime.teachers.limits import Limits

T = TypeVar("T")
Covered = dict[Pair, CommitRef]

OPEN_UNITS = 2
"""Units under way at once, so that a unit's last slow answer does not leave the teacher idle."""
NAMED_ROWS = 3
"""Rows that a failure names: its message has 400 bytes."""
SMOKE_POLL_SECONDS = 1.0
SMOKE_WAIT_SECONDS = 1800.0
"""How long other workers wait for the smoke unit; its own worker says what went wrong, if anything."""
TRANSFORMERS_IN_FLIGHT = 2
"""That engine answers one request at a time; the second waits at its door."""


class Questions(Protocol[T]):
    """How one kind of stage asks, and what a unit's object holds."""

    @property
    def rows(self) -> IndexedRows:
        """What the pairs are of."""

    async def ask(self, pairs: Sequence[Pair], heard: Callable[[Pair, T | Reject], None]) -> None:
        """Ask all ``pairs``; call ``heard`` for each as soon as it is answered or rejected."""

    def pack(self, done: Sequence[tuple[Pair, T]]) -> list[tuple[Path | bytes, str]]:
        """The objects (content, suffix) of a commit; ``done`` is in the unit's order and not empty."""

    def tokens(self, answer: T) -> int:
        """Tokens of an answer, for the rate that is shown."""

    async def close(self) -> None:
        """Let go of the teacher."""


@dataclass(frozen=True)
class IndexedRows:
    """The rows of an artifact, found by key."""

    reader: RowsReader
    places: dict[str, int]

    @classmethod
    def of(cls, reader: RowsReader) -> IndexedRows:
        """Read the keys."""
        return cls(reader, {key: place for place, key in enumerate(reader.keys)})

    def get(self, key: str) -> Row:
        """One row; KeyError where there is none."""
        place = self.places[key]
        return self.reader.rows(place, place + 1)[0]


@dataclass
class Open(Generic[T]):
    """A unit that is being asked."""

    position: str
    asked: tuple[Pair, ...]
    heard: dict[Pair, T | Reject] = field(default_factory=dict)

    @property
    def unanswered(self) -> list[str]:
        """Keys of the rows that it waits for, in order."""
        return list(dict.fromkeys(pair.row for pair in self.asked if pair not in self.heard))


@dataclass
class Asking(Generic[T]):
    """One worker's part of a stage's questions."""

    ctx: StageContext
    pairs: tuple[Pair, ...]
    """Of the whole stage, in the rows' order."""
    questions: Questions[T]
    _covered: Covered = field(default_factory=dict)
    _under_way: dict[int, Open[T]] = field(default_factory=dict)
    """By number, the smoke unit's below all others'. A unit that failed stays."""
    _commits: threading.Lock = field(default_factory=threading.Lock)
    _done: int = 0
    _rejected: Counter[str] = field(default_factory=Counter)
    _example: str = ""
    _tokens: int = 0
    _total: int = 0

    def __post_init__(self) -> None:
        assert self.ctx.stage.asking_key is not None
        self._units = UnitStore(self.ctx.store, self.ctx.stage.asking_key, self.ctx.writer)

    def run(self) -> Covered:
        """Ask what this worker is to ask; what is covered by all workers then.

        Raises:
            DataError: the smoke test failed, or more than maxRejectedRatio are rejected.
            TeacherError, DeniedError, SettingsError: as the client says.
        """
        self._covered = self._units.covered()
        smoke, units = self._cut()
        mine = units_of(units, self.ctx.index, self.ctx.workers)
        self._total = sum(len(unit.pairs) for unit in mine) + (len(smoke) if self.ctx.index == 0 else 0)
        self._count_found([*(p for unit in mine for p in unit.pairs), *(smoke if self.ctx.index == 0 else ())])
        self._report()
        run_until_done(self._all(smoke, mine))
        return self._units.covered()

    def missing(self, covered: Covered) -> int:
        """Pairs of the stage that are not covered yet: other workers' work."""
        return len(uncovered(self.pairs, covered))

    def says(self) -> str:
        """What a worker says that found no units left, while others are at work."""
        _, units = self._cut()
        numbers = [unit.number for unit in units_of(units, self.ctx.index, self.ctx.workers)]
        shown = ", ".join(map(str, numbers[:12])) + (f" and {len(numbers) - 12} more" if len(numbers) > 12 else "")
        return (
            f"worker {self.ctx.index}: its units ({shown or 'none'}) of {len(units)} are committed; others are at work"
        )

    def _cut(self) -> tuple[tuple[Pair, ...], list[Unit]]:
        preflight = self.ctx.plan.spec.preflight
        first = 0 if preflight.mode is PreflightMode.Off else preflight.smoke_rows
        return self.pairs[:first], cut_units(self.pairs[first:])

    async def _all(self, smoke: tuple[Pair, ...], mine: list[Unit]) -> None:
        try:
            await self._in_order(smoke, mine)
        finally:
            await self.questions.close()

    async def _in_order(self, smoke: tuple[Pair, ...], mine: list[Unit]) -> None:
        goes_on = self._goes_on(smoke, mine)
        if smoke and self.ctx.index == 0:
            await self._smoke(smoke)
        elif smoke and mine:
            await self._wait_for(smoke)
        todo = deque(unit for unit in mine if uncovered(unit.pairs, self._covered))
        if goes_on:
            for _ in range(min(OPEN_UNITS, len(todo))):
                await self._unit(todo.popleft())
        async with asyncio.TaskGroup() as lanes:
            for _ in range(OPEN_UNITS):
                lanes.create_task(self._lane(todo))

    def _goes_on(self, smoke: tuple[Pair, ...], mine: list[Unit]) -> bool:
        """Whether an earlier try may have failed in one of the first open units: each is asked alone then, so that what fails in
        it again is not another's fault."""
        begun = any(pair in self._covered for unit in mine for pair in unit.pairs)
        smoked = self.ctx.index == 0 and any(pair in self._covered for pair in smoke)
        return self.ctx.attempt > 1 or begun or smoked

    async def _lane(self, todo: deque[Unit]) -> None:
        while todo:
            await self._unit(todo.popleft())

    async def _unit(self, unit: Unit) -> None:
        asked = uncovered(unit.pairs, self._covered)
        with self._open(unit.number, unit_position(unit.number), asked) as opened:
            await self._ask(opened)
            await asyncio.to_thread(self._commit, asked, opened.heard)
        self._check_rejected()

    async def _smoke(self, smoke: tuple[Pair, ...]) -> None:
        """Unit 0: where it fails, its rejections are not committed, so that they are asked again once the cause is gone."""
        asked = uncovered(smoke, self._covered)
        if not asked:
            return
        with self._open(-1, SMOKE_UNIT, asked) as opened:
            await self._ask(opened)
        heard = opened.heard
        passed = sum(not isinstance(heard[pair], Reject) for pair in asked)
        passed += sum(self._covered[pair].done for pair in smoke if pair in self._covered)
        wanted = self.ctx.plan.spec.preflight.min_passed_ratio
        if passed >= wanted * len(smoke):
            await asyncio.to_thread(self._commit, asked, heard)
            self._check_rejected()
            return
        answered: dict[Pair, T | Reject] = {p: answer for p, answer in heard.items() if not isinstance(answer, Reject)}
        await asyncio.to_thread(self._commit, tuple(answered), answered)
        raise DataError(
            f"smoke test: the teacher answered {passed} of {len(smoke)} rows (preflight.minPassedRatio {wanted:g}); "
            f"nothing else was asked; {self._reasons()}"
        )

    async def _wait_for(self, smoke: tuple[Pair, ...]) -> None:
        deadline = time.monotonic() + SMOKE_WAIT_SECONDS
        while uncovered(smoke, self._covered):
            if time.monotonic() > deadline:
                raise TransientError(f"worker 0 has not committed the smoke unit after {SMOKE_WAIT_SECONDS:.0f} s")
            self._report("waiting for the smoke test")
            await asyncio.sleep(SMOKE_POLL_SECONDS)
            self._covered = await asyncio.to_thread(self._units.covered)

    async def _ask(self, opened: Open[T]) -> None:
        """Ask; on any interruption what was answered by then is committed, for it is paid for."""

        def hear(pair: Pair, answer: T | Reject) -> None:
            opened.heard[pair] = answer
            self._note(answer)

        try:
            await self.questions.ask(opened.asked, hear)
        except BaseException:
            answered: dict[Pair, T | Reject] = {p: a for p, a in opened.heard.items() if not isinstance(a, Reject)}
            self._commit(tuple(pair for pair in opened.asked if pair in answered), answered)
            raise

    @contextmanager
    def _open(self, number: int, position: str, asked: tuple[Pair, ...]) -> Iterator[Open[T]]:
        """What fails inside, fails at ``position``: the poison rule tells by it what keeps failing at the same place.

        A teacher that answers nobody fails all units under way, in any order. It is the first one's failure, so that each attempt
        says the same; and no unit's, where the teacher was not there to get anything.
        """
        self._under_way[number] = opened = Open[T](position, asked)
        try:
            yield opened
        except (KDError, BaseExceptionGroup) as error:
            failure = deciding(error) if isinstance(error, BaseExceptionGroup) else error
            if isinstance(failure, TeacherError):
                self._blame_first(failure)
            elif isinstance(failure, KDError):
                failure.position = position
            raise
        del self._under_way[number]

    def _blame_first(self, failure: TeacherError) -> None:
        waiting = {number: opened for number, opened in self._under_way.items() if opened.unanswered}
        if failure.received and waiting:
            first = waiting[min(waiting)]
            failure.position = first.position
            failure.args = (f"{first.position}, no answer to {self._named(first.unanswered)}: {failure}",)

    def _named(self, keys: Sequence[str]) -> str:
        """The first of some rows, as ``file:line``."""
        named = [self.questions.rows.get(key).source or key for key in keys[:NAMED_ROWS]]
        more = f" and {len(keys) - NAMED_ROWS} more" if len(keys) > NAMED_ROWS else ""
        return ", ".join(named) + more

    def _commit(self, asked: Sequence[Pair], heard: Mapping[Pair, T | Reject]) -> None:
        if not asked:
            return
        done: list[tuple[Pair, T]] = []
        rejected: list[Reject] = []
        for pair in asked:
            answer = heard[pair]
            if isinstance(answer, Reject):
                rejected.append(answer)
            else:
                done.append((pair, answer))
        objects = self.questions.pack(done) if done else []
        with self._commits:
            self._units.commit(asked, [pair for pair, _ in done], rejected, objects)
        for body, _ in objects:
            if isinstance(body, Path):
                body.unlink()

    def _count_found(self, mine: Sequence[Pair]) -> None:
        for pair in mine:
            ref = self._covered.get(pair)
            if ref is not None:
                self._done += 1
                if ref.reject is not None:
                    self._reject(ref.reject)

    def _note(self, answer: T | Reject) -> None:
        self._done += 1
        if isinstance(answer, Reject):
            self._reject(answer)
        else:
            self._tokens += self.questions.tokens(answer)
        self._report()

    def _reject(self, reject: Reject) -> None:
        self._rejected[reject.reason] += 1
        self._example = self._example or f"{reject.source or reject.row}: {reject.detail}"

    def _report(self, message: str = "") -> None:
        rejected = sum(self._rejected.values())
        said = message or (f"{rejected} rejected" if rejected else "")
        self.ctx.reporter.update(self._done, self._total, "rows", tokens=self._tokens, message=said)

    def _check_rejected(self) -> None:
        """End early where more are rejected than may be, whatever comes."""
        check_rejected(self.ctx, sum(self._rejected.values()), len(self.pairs), self._reasons())

    def _reasons(self) -> str:
        counted = ", ".join(f"{reason} {count}" for reason, count in self._rejected.most_common(4))
        return f"{counted}; for example {self._example}"


def check_rejected(ctx: StageContext, rejected: int, total: int, reasons: str) -> None:
    """Raise DataError where more than ``dataset.maxRejectedRatio`` of ``total`` pairs are rejected."""
    allowed = ctx.plan.spec.dataset.max_rejected_ratio
    if rejected > allowed * total:
        raise DataError(
            f"spec.dataset.maxRejectedRatio: {rejected} of {total} rows are rejected ({allowed:g} of them may be): {reasons}; "
            "see `kd rejects list`, correct them or raise it"
        )


def client_of(ctx: StageContext, *, rows_a_request: int = 1) -> TeacherClient:
    """A client of the stage's teacher, with this worker's share of its limits.

    Raises:
        SettingsError: nobody said where the teacher is.
    """
    if ctx.teacher is None:
        raise SettingsError(
            f"stage {ctx.stage.name}: KD_TEACHER_URL is not set; it says where the stage's teacher answers"
        )
    name, teacher = teacher_named(ctx.plan.spec, ctx.settings.teacher)
    if teacher.external is not None:
        limits = teacher.external.limits
        share = Limits(limits.max_in_flight, limits.requests_per_minute, limits.tokens_per_minute).share(ctx.workers)
        model, outage = teacher.external.model, teacher.external.outage_timeout_seconds
        guard = guard_of(f"teacher {name}, external.baseURL")
    else:
        assert teacher.hosted is not None
        slots = teacher.hosted.serving.max_num_seqs // rows_a_request
        each = slots if teacher.hosted.engine is Engine.VLLM else TRANSFORMERS_IN_FLIGHT
        share = Limits(max(1, each) * teacher.hosted.replicas).share(ctx.workers)
        model, outage = name, teacher.hosted.outage_timeout_seconds
        guard = None  # its address is the operator's, within the cluster
    return TeacherClient(
        ctx.teacher.url, ctx.teacher.key, model=model, limits=share, outage_seconds=outage, guard=guard
    )


def run_until_done(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` in an event loop of its own; SIGTERM cancels it in an orderly way, and is then dealt with as before.

    Of several failures at once the one that decides is raised alone (contract 7's order).
    """
    asked_to_end = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            asked_to_end.set()
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        await work

    try:
        asyncio.run(main())
    except BaseExceptionGroup as group:
        raise deciding(group) from group
    except asyncio.CancelledError:
        if not asked_to_end.is_set():
            raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    if asked_to_end.is_set():
        signal.raise_signal(signal.SIGTERM)


def deciding(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of all that failed together, the failure whose class decides."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(deciding(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(leaves, key=lambda error: GANG_ORDER.index(classify(error)))
