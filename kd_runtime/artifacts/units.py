"""Units: what a teacher is asked, in pieces that are committed one by one, so that nothing is asked twice (contract 4)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import ObjectRef
from kd_runtime.artifacts.rejects import Reject
from kd_runtime.artifacts.store import AlreadyExists, Missing, Store, body_sha256
from kd_runtime.artifacts.wholeness import is_there

ANSWERS = "answers/"
RETRY = "retry-"
UNIT_PAIRS = 256
READERS = 16
COMMIT_TRIES = 64
"""How often at most a unit may have lost an object before."""
SEED_BITS = 31
"""Every server takes a seed below 2^31."""


@dataclass(frozen=True, order=True)
class Pair:
    """One question to the teacher: a row, and the number of the sample."""

    row: str
    sample: int


@dataclass(frozen=True)
class Unit:
    """At most 256 pairs that are asked, and committed, together."""

    id: str
    number: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class UnitCommit:
    """A unit that was asked: each of its pairs is done or rejected. ``name`` is the commit's own name in the store."""

    name: str
    unit: str
    done: tuple[Pair, ...]
    """In the order in which the objects hold them."""
    rejected: tuple[Reject, ...]
    objects: tuple[ObjectRef, ...]
    """``path`` is ``<unit>.<suffix>``."""
    extra: dict[str, Any]
    writer: str
    nonces: tuple[str, ...] = ()
    """The retries that this commit answers."""

    def object(self, suffix: str) -> ObjectRef:
        """The object with that suffix; KeyError where there is none."""
        for ref in self.objects:
            if ref.path == f"{self.unit}.{suffix}":
                return ref
        raise KeyError(suffix)

    def encoded(self) -> bytes:
        """The commit's bytes in the store."""
        body = {
            "version": 1,
            "unit": self.unit,
            "done": [[p.row, p.sample] for p in self.done],
            "rejected": [asdict(r) for r in self.rejected],
            "objects": [ref.model_dump(mode="json") for ref in self.objects],
            "extra": self.extra,
            "writer": self.writer,
            "nonces": list(self.nonces),
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def decoded(cls, body: bytes, name: str) -> UnitCommit:
        """The commit in ``body``. Raises ValueError, KeyError or TypeError where it is none."""
        data = json.loads(body)
        return cls(
            name=name,
            unit=data["unit"],
            done=tuple(Pair(row, sample) for row, sample in data["done"]),
            rejected=tuple(Reject(**reject) for reject in data["rejected"]),
            objects=tuple(ObjectRef.model_validate(ref) for ref in data["objects"]),
            extra=data["extra"],
            writer=data["writer"],
            nonces=tuple(data["nonces"]),
        )


@dataclass(frozen=True)
class CommitRef:
    """Where a covered pair stands: its commit, and its place in ``commit.done``, or why it was rejected."""

    commit: UnitCommit
    index: int | None = None
    reject: Reject | None = None

    @property
    def done(self) -> bool:
        """True where the teacher answered; False where the pair was rejected."""
        return self.index is not None


@dataclass
class Coverage:
    """What the commits and retries under one asking key say; pure."""

    commits: dict[str, UnitCommit] = field(default_factory=dict)
    retries: dict[str, frozenset[Pair]] = field(default_factory=dict)
    """Nonce -> the pairs that are to be asked again."""

    def pairs(self) -> dict[Pair, CommitRef]:
        """Every covered pair. Done beats rejected; a rejected pair that a retry names is open until its nonce is answered."""
        covered: dict[Pair, CommitRef] = {}
        wanted = self._wanted()
        answered: dict[Pair, set[str]] = {}
        for name in sorted(self.commits):  # by name, so that every reader picks the same of two
            commit = self.commits[name]
            for index, pair in enumerate(commit.done):
                if not (pair in covered and covered[pair].done):
                    covered[pair] = CommitRef(commit, index)
            for reject in commit.rejected:
                pair = Pair(reject.row, reject.sample)
                answered.setdefault(pair, set()).update(commit.nonces)
                if _later(covered.get(pair), commit):
                    covered[pair] = CommitRef(commit, reject=reject)
        return {pair: ref for pair, ref in covered.items() if ref.done or wanted.get(pair, set()) <= answered[pair]}

    def open_nonces(self, pairs: Iterable[Pair]) -> tuple[str, ...]:
        """The retries that a commit of ``pairs`` answers."""
        wanted = self._wanted()
        return tuple(sorted({nonce for pair in pairs for nonce in wanted.get(pair, ())}))

    def _wanted(self) -> dict[Pair, set[str]]:
        wanted: dict[Pair, set[str]] = {}
        for nonce, pairs in self.retries.items():
            for pair in pairs:
                wanted.setdefault(pair, set()).add(nonce)
        return wanted


def _later(known: CommitRef | None, commit: UnitCommit) -> bool:
    """Of two rejections, that which answers more retries is the later one."""
    return known is None or (not known.done and len(commit.nonces) > len(known.commit.nonces))


class UnitStore:
    """The units under one asking key, as one writer sees them. Whatever order any number of writers work in, no commit is lost.

    Safe to use from several threads.
    """

    def __init__(self, store: Store, asking_key: str, writer: str):
        self.store, self.asking_key, self.writer = store, asking_key, writer
        self._coverage = Coverage()
        self._guard = threading.Lock()

    @property
    def prefix(self) -> str:
        """Where the units lie."""
        return f"{ANSWERS}{self.asking_key}/"

    def covered(self) -> dict[Pair, CommitRef]:
        """Every pair that a commit covers now. Commits never change: each is read once.

        A commit of which an object is gone covers nothing: what it answered is asked again.

        Raises:
            StorageError: a commit is garbled (named).
        """
        with self._guard:
            self._refresh()
            return self._coverage.pairs()

    def has_open_retry(self) -> bool:
        """True where a pair that is to be asked again has not been."""
        if next(iter(self.store.list(f"{self.prefix}{RETRY}")), None) is None:
            return False
        covered = self.covered()
        return any(pair not in covered for pairs in self._coverage.retries.values() for pair in pairs)

    def commit(
        self,
        pairs: Sequence[Pair],
        done: Sequence[Pair],
        rejected: Sequence[Reject],
        objects: Sequence[tuple[Path | bytes, str]],
        extra: Mapping[str, Any] | None = None,
    ) -> UnitCommit:
        """Commit the answers to ``pairs`` (those that were asked): objects first, each (content, suffix), then the commit.

        Returns the commit that counts: of two writers that asked the same pairs, the first one's. One of which an object is
        gone stays where it is; the unit's next id depends on it, so that those who ask its pairs again meet at one name too.

        Raises:
            ValueError: ``pairs`` is not exactly done and rejected.
            StorageError: the store shows another state at each look.
        """
        _check_sum(pairs, done, rejected)
        with self._guard:
            nonces = self._coverage.open_nonces(pairs)
        lost: list[str] = []
        for _ in range(COMMIT_TRIES):
            unit = unit_id(pairs, (*nonces, *lost))
            refs = tuple(self._stored(unit, body, suffix) for body, suffix in objects)
            name, given = f"{self.prefix}{unit}.json", dict(extra or {})
            ours = UnitCommit(name, unit, tuple(done), tuple(rejected), refs, given, self.writer, nonces)
            try:
                self.store.put(name, ours.encoded(), if_absent=True)
            except AlreadyExists:
                standing = self._standing(name)
                winner = self._learned(name, standing) if standing is not None else None
                self._withdraw(ours, winner)
                if winner is not None:
                    return winner
                if standing is not None:
                    lost.append(body_sha256(standing))
                continue
            with self._guard:
                self._coverage.commits[name] = ours
            return ours
        raise StorageError(f"{self.store.uri}{name}: loses an object each time; see what else deletes there")

    def read(self, commit: UnitCommit, suffix: str) -> bytes:
        """One object of a commit, verified.

        Raises:
            TransientError: it vanished.
            StorageError: it is damaged.
        """
        ref = commit.object(suffix)
        body = self.store.get(ref.name)
        if body_sha256(body) != ref.sha256:
            raise StorageError(f"{self.store.uri}{ref.name}: is damaged; delete {commit.name} and run again")
        return body

    def request_retry(self, pairs: Iterable[Pair], nonce: str) -> None:
        """Ask rejected ``pairs`` again: they are open until a unit whose id has ``nonce`` covers them.

        The same nonce a second time changes nothing. The stage's manifest is to be retired afterwards.
        """
        body = json.dumps({"pairs": sorted([p.row, p.sample] for p in pairs)}, separators=(",", ":")).encode()
        try:
            self.store.put(f"{self.prefix}{RETRY}{nonce}.json", body, if_absent=True)
        except AlreadyExists:
            return

    def _refresh(self) -> None:
        known = self._coverage
        listed = {info.name: info.size for info in self.store.list(self.prefix)}
        names = [name for name in listed if name.endswith(".json")]
        read = {n for n in names if n in known.commits or _nonce(n, self.prefix) in known.retries}
        new = [name for name in names if name not in read]
        with ThreadPoolExecutor(READERS) as pool:
            for name, body in zip(new, pool.map(self.store.get, new), strict=True):
                self._learn(name, body)
        for name, commit in list(known.commits.items()):
            if not self._whole(commit, listed):
                del known.commits[name]

    def _learn(self, name: str, body: bytes) -> None:
        nonce = _nonce(name, self.prefix)
        try:
            if nonce is None:
                self._coverage.commits[name] = UnitCommit.decoded(body, name)
            else:
                self._coverage.retries[nonce] = frozenset(Pair(r, s) for r, s in json.loads(body)["pairs"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.store.uri}{name}: is garbled ({error}); delete it and run again") from error

    def _stored(self, unit: str, body: Path | bytes, suffix: str) -> ObjectRef:
        digest = body_sha256(body)
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        name = f"{self.prefix}{self.writer}-{unit}.{suffix}"
        self.store.put(name, body, sha256=digest)
        return ObjectRef(name=name, size=size, sha256=digest, path=f"{unit}.{suffix}")

    def _whole(self, commit: UnitCommit, listed: Mapping[str, int]) -> bool:
        return all(is_there(self.store, ref, listed) for ref in commit.objects)

    def _standing(self, name: str) -> bytes | None:
        """The commit that is there; None where it has vanished again."""
        try:
            return self.store.get(name)
        except Missing:
            return None

    def _learned(self, name: str, body: bytes) -> UnitCommit | None:
        """The commit in ``body``; None where an object of it is gone."""
        with self._guard:
            self._learn(name, body)
            commit = self._coverage.commits[name]
            if self._whole(commit, {}):
                return commit
            del self._coverage.commits[name]
        return None

    def _withdraw(self, ours: UnitCommit, winner: UnitCommit | None) -> None:
        """Delete the objects of a commit that does not count."""
        kept = {ref.name for ref in winner.objects} if winner is not None else set()
        for ref in ours.objects:
            if ref.name not in kept:
                self.store.delete(ref.name)


def unit_id(pairs: Sequence[Pair], nonces: Sequence[str] = ()) -> str:
    """32 hex digits of the digest of a (row, sample) list, of the retries that it answers, and of commits that lost an object."""
    body = json.dumps([[[p.row, p.sample] for p in pairs], *nonces], separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:32]


def commit_name(name: str) -> str | None:
    """The commit that an object below answers/ belongs to; None for an object that lies elsewhere."""
    folder, _, base = name.rpartition("/")
    unit = base.partition("-")[2].partition(".")[0]
    return f"{folder}/{unit}.json" if name.startswith(ANSWERS) and unit else None


def cut_units(pairs: Sequence[Pair], size: int = UNIT_PAIRS) -> list[Unit]:
    """Units of ``size`` consecutive pairs (the last may be smaller), by order alone."""
    pieces = [tuple(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    return [Unit(unit_id(piece), number, piece) for number, piece in enumerate(pieces)]


def units_of(units: Sequence[Unit], index: int, workers: int) -> list[Unit]:
    """The units that worker ``index`` of ``workers`` takes."""
    return [unit for unit in units if unit.number % workers == index]


def uncovered(pairs: Iterable[Pair], covered: Mapping[Pair, object]) -> tuple[Pair, ...]:
    """Those of ``pairs`` that no commit covers, in order: the only ones to be asked."""
    return tuple(pair for pair in pairs if pair not in covered)


def request_seed(stage_seed: int, row: str, sample: int) -> int:
    """The seed of one request: a hash of the stage's seed, the row's key and the sample's number; below 2^31."""
    digest = hashlib.sha256(f"{stage_seed}\0{row}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def _nonce(name: str, prefix: str) -> str | None:
    base = name.removeprefix(prefix)
    return base.removeprefix(RETRY).removesuffix(".json") if base.startswith(RETRY) else None


def _check_sum(pairs: Sequence[Pair], done: Sequence[Pair], rejected: Sequence[Reject]) -> None:
    answered = [*done, *(Pair(r.row, r.sample) for r in rejected)]
    if len(set(answered)) != len(answered) or set(answered) != set(pairs) or len(set(pairs)) != len(pairs):
        raise ValueError(
            f"of {len(pairs)} pairs {len(done)} are done and {len(rejected)} rejected: in must be done + rejected"
        )
