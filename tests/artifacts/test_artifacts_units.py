"""A teacher is asked only what no commit covers, whoever was killed, grown, repeated or retried before."""

from __future__ import annotations

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from artifacts.memory_store import Killed, MemoryStore
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.rejects import Reject
from kd_runtime.artifacts.store import Missing, Store
from kd_runtime.artifacts.units import Pair, UnitStore, cut_units, request_seed, uncovered, unit_id, units_of
from kd_runtime.artifacts.writer import new_writer_id

KEY = "ab" * 32


def pairs_of(rows: int, samples: int) -> list[Pair]:
    return [Pair(f"row{row}", sample) for row in range(rows) for sample in range(samples)]


def rejected(pair: Pair, reason: str = "TeacherRefused") -> Reject:
    return Reject(pair.row, pair.sample, reason, "said no", "d.jsonl:1")


class Teacher:
    """Counts what it is asked; answers with the pair itself, but refuses some rows as long as told to."""

    def __init__(self, refuses: frozenset[Pair] = frozenset()):
        self.asked: Counter[Pair] = Counter()
        self.refuses = refuses

    def work(self, store: Store, pairs: list[Pair], size: int, index: int = 0, workers: int = 1) -> UnitStore:
        """What a worker does: look, ask what is not covered, commit."""
        units = UnitStore(store, KEY, new_writer_id())
        covered = units.covered()
        for unit in units_of(cut_units(pairs, size), index, workers):
            asked = uncovered(unit.pairs, covered)
            if not asked:
                continue
            self.asked.update(asked)
            done = [pair for pair in asked if pair not in self.refuses]
            body = "\n".join(f"{p.row} {p.sample}" for p in done).encode()
            units.commit(asked, done, [rejected(p) for p in asked if p in self.refuses], [(body, "jsonl")])
        return units


def answers(units: UnitStore, pairs: list[Pair]) -> dict[Pair, str]:
    covered = units.covered()
    found = {}
    for pair in pairs:
        ref = covered[pair]
        if ref.index is not None:
            found[pair] = units.read(ref.commit, "jsonl").decode().split("\n")[ref.index]
    return found


def test_units_are_cut_by_order_alone_and_named_by_their_pairs() -> None:
    pairs = pairs_of(150, 4)
    units = cut_units(pairs)
    assert [len(unit.pairs) for unit in units] == [256, 256, 88]
    assert [unit.number for unit in units] == [0, 1, 2]
    assert units[0].id == unit_id(pairs[:256]) != unit_id(pairs[1:257]) != unit_id(pairs[1:257], ["nonce"])
    assert cut_units(pairs_of(200, 4))[:2] == units[:2]
    assert cut_units([]) == []


@given(count=st.integers(0, 40), workers=st.integers(1, 7))
def test_workers_share_the_units_by_number(count: int, workers: int) -> None:
    units = cut_units(pairs_of(count, 1), 1)
    shares = [units_of(units, index, workers) for index in range(workers)]
    assert sorted(unit.number for share in shares for unit in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_commit_tells_each_pairs_place_and_its_objects(store: Store) -> None:
    teacher = Teacher(frozenset({Pair("row1", 0)}))
    units = teacher.work(store, pairs_of(3, 1), 256)
    covered = UnitStore(store, KEY, "other").covered()
    assert [covered[pair].index for pair in pairs_of(3, 1)] == [0, None, 1]
    reject = covered[Pair("row1", 0)].reject
    assert reject is not None and (reject.reason, reject.source) == ("TeacherRefused", "d.jsonl:1")
    commit = covered[Pair("row0", 0)].commit
    assert units.read(commit, "jsonl") == b"row0 0\nrow2 0"
    assert commit.object("jsonl").name == f"answers/{KEY}/{units.writer}-{commit.unit}.jsonl"
    with pytest.raises(KeyError):
        commit.object("safetensors")


@pytest.mark.parametrize(
    ("done", "refused"), [([0], []), ([0, 1], [1]), ([0, 1, 2], []), ([0, 0, 1], []), ([], [0, 0])]
)
def test_in_is_done_and_rejected_exactly(folder_store: Store, done: list[int], refused: list[int]) -> None:
    pairs = pairs_of(3, 1)
    units = UnitStore(folder_store, KEY, "w")
    with pytest.raises(ValueError, match="in must be done \\+ rejected"):
        units.commit(pairs[:2], [pairs[i] for i in done], [rejected(pairs[i]) for i in refused], [])
    assert not list(folder_store.list(""))


def test_two_writers_of_one_unit_agree_on_the_first_one(store: Store) -> None:
    pairs = pairs_of(4, 1)

    def race(number: int) -> str:
        units = UnitStore(store, KEY, new_writer_id())
        return units.read(units.commit(pairs, pairs, [], [(b"%d" % number, "jsonl")]), "jsonl").decode()

    with ThreadPoolExecutor(8) as pool:
        read = set(pool.map(race, range(8)))
    assert len(read) == 1
    assert len(list(store.list(f"answers/{KEY}/"))) == 2  # the losers' objects are gone


def test_a_grown_dataset_pays_for_its_new_rows(folder_store: Store) -> None:
    teacher = Teacher()
    teacher.work(folder_store, pairs_of(300, 1), 256)
    teacher.asked.clear()
    units = teacher.work(folder_store, pairs_of(310, 1), 256)
    assert teacher.asked == Counter(pairs_of(310, 1)[300:])
    assert answers(units, pairs_of(310, 1)) == {p: f"{p.row} {p.sample}" for p in pairs_of(310, 1)}


def test_eight_samples_after_four_pay_for_four(folder_store: Store) -> None:
    teacher = Teacher()
    teacher.work(folder_store, pairs_of(100, 4), 256)
    teacher.asked.clear()
    units = teacher.work(folder_store, pairs_of(100, 8), 256)
    assert teacher.asked == Counter(p for p in pairs_of(100, 8) if p.sample >= 4)
    assert len(answers(units, pairs_of(100, 8))) == 800
    teacher.asked.clear()
    teacher.work(folder_store, pairs_of(100, 4), 256)
    assert not teacher.asked


def test_rejected_pairs_are_covered_until_a_retry_names_them(folder_store: Store) -> None:
    pairs = pairs_of(5, 1)
    teacher = Teacher(frozenset(pairs[:2]))
    units = teacher.work(folder_store, pairs, 4)
    teacher.asked.clear()
    teacher.work(folder_store, pairs, 4)
    assert not teacher.asked

    units.request_retry([pairs[0]], "first")
    units.request_retry([pairs[0], pairs[1]], "first")  # the same nonce again changes nothing
    teacher.work(folder_store, pairs, 4)
    assert teacher.asked == Counter([pairs[0]])
    teacher.work(folder_store, pairs, 4)
    assert teacher.asked == Counter([pairs[0]])  # answered: still refused, and not asked a third time

    units.request_retry(pairs[:2], "second")
    teacher.refuses = frozenset()
    again = teacher.work(folder_store, pairs, 4)
    assert teacher.asked == Counter([pairs[0], pairs[0], pairs[1]])
    assert set(answers(again, pairs)) == set(pairs)  # done beats rejected


def test_a_retry_of_what_is_done_asks_nothing(folder_store: Store) -> None:
    pairs = pairs_of(3, 1)
    teacher = Teacher()
    teacher.work(folder_store, pairs, 4).request_retry(pairs, "n")
    teacher.asked.clear()
    teacher.work(folder_store, pairs, 4)
    assert not teacher.asked


def test_other_asking_keys_are_not_seen(folder_store: Store) -> None:
    Teacher().work(folder_store, pairs_of(3, 1), 4)
    assert UnitStore(folder_store, "cd" * 32, "w").covered() == {}


def test_a_damaged_object_and_a_garbled_commit_are_named(store: Store) -> None:
    units = Teacher().work(store, pairs_of(3, 1), 4)
    commit = next(iter(units.covered().values())).commit
    store.put(commit.object("jsonl").name, b"row0 0\nrow1 0\nrow3 0")
    with pytest.raises(StorageError, match=r"\.jsonl: is damaged"):
        units.read(commit, "jsonl")
    store.delete(commit.object("jsonl").name)
    with pytest.raises(Missing):
        units.read(commit, "jsonl")
    store.put(commit.name, b"{")
    with pytest.raises(StorageError, match=f"{commit.name}: is garbled"):
        UnitStore(store, KEY, "w").covered()


def test_commits_are_read_once(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    units = Teacher().work(folder_store, pairs_of(40, 1), 4)
    units.covered()
    monkeypatch.setattr(folder_store, "get", lambda name: pytest.fail(f"read {name} again"))
    assert len(units.covered()) == 40


def test_a_requests_seed_depends_on_stage_seed_row_and_sample_alone() -> None:
    seeds = {request_seed(seed, row, sample) for seed in (0, 7) for row in ("a", "b") for sample in range(4)}
    assert len(seeds) == 16 and all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(7, "0123456789abcdef", 3) == 1043595611


RUNS = st.lists(
    st.tuples(
        st.integers(1, 9),  # rows
        st.integers(1, 3),  # samples
        st.integers(1, 3),  # workers
        st.one_of(st.none(), st.integers(0, 8)),  # the write at which each worker is killed
        st.sets(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=4),  # what is refused
        st.booleans(),  # whether what is rejected is asked again
    ),
    min_size=1,
    max_size=6,
)


@given(runs=RUNS, size=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_whatever_happened_only_what_is_not_covered_is_asked(
    runs: list[tuple[int, int, int, int | None, set[tuple[int, int]], bool]], size: int
) -> None:
    store = MemoryStore()
    for number, (rows, samples, workers, kill, refused, retry) in enumerate(runs):
        pairs = pairs_of(rows, samples)
        before = UnitStore(store, KEY, "look").covered()
        teacher = Teacher(frozenset(Pair(f"row{row}", sample) for row, sample in refused))
        for index in range(workers):
            store.writes_left = kill
            with contextlib.suppress(Killed):
                teacher.work(store, pairs, size, index, workers)
        store.writes_left = None
        assert not set(teacher.asked) & set(before)
        assert set(teacher.asked.values()) <= {1}
        units = UnitStore(store, KEY, "look")
        covered = units.covered()
        assert set(covered) <= {p for run in runs[: number + 1] for p in pairs_of(run[0], run[1])}
        assert set(before) <= set(covered)
        assert all(covered[pair].done for pair, ref in before.items() if ref.done)
        if kill is None:
            assert set(pairs) <= set(covered)
        assert all(text == f"{p.row} {p.sample}" for p, text in answers(units, sorted(covered)).items())
        if retry:
            again = [pair for pair, ref in covered.items() if not ref.done]
            units.request_retry(again, f"n{number}")
            assert set(UnitStore(store, KEY, "look").covered()) == set(covered) - set(again)
