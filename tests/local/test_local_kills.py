"""Killed anywhere, any number of times, typed again: the same student, nothing asked again that was committed, no process left.

KD_SOAK_KILLS says how many kills (`make soak` takes hundreds).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import yaml
from local.recording_proxy import recording_proxy
from manifests import job, tiny_train

from kd_runtime.artifacts.store import body_sha256, open_store
from kd_runtime.artifacts.units import Pair, UnitStore, request_seed

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(6 * 3600)]
KILLS = int(os.environ.get("KD_SOAK_KILLS", "10"))
KINDS = {"rank": "training.rank", "teacher": "teacher serve", "stage": "stage run", "run": "main run"}
"""Kinds of process, by what their command lines hold; the first that fits counts."""
GONE_SECONDS = 30
RUN_SECONDS = 600
SEED = 3


class Run:
    """A job in a folder with a store of its own; `kd run` of it, typed any number of times, its teacher behind a proxy."""

    def __init__(self, root: Path, models: Path, until: ExitStack):
        self.root = root
        self.proxy = until.enter_context(recording_proxy(open_store(f"file://{root}/store/"), SEED))
        root.mkdir()
        words = ("red", "blue", "green", "black", "white", "brown")
        rows = [{"instruction": f"Say {a} and {b}."} for a in words for b in words]
        (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train = tiny_train(epochs=2, checkpoint={"everySteps": 3})
        stages = [
            {
                "name": "answers",
                "generate": {"sampling": {"temperature": 0.8, "maxTokens": 16, "seed": SEED}, "keepTruncated": True},
            },
            {"name": "logits", "capture": {"topK": 8}},
            {"name": "student", "resources": {"nodes": 2}, "train": train},
            {"name": "exam", "evaluate": {"suites": [{"name": "HeldOut", "maxTokens": 8}]}},
            {"name": "release", "publish": {"targets": [{"uri": f"file://{root}/out/"}], "requireGates": False}},
        ]
        policy = {"backoffLimit": 3, "backoff": {"baseSeconds": 1, "maxSeconds": 1}}
        document = job(stages, models, root / "data.jsonl", f"file://{root}/store/", failurePolicy=policy)
        (root / "job.yaml").write_text(yaml.safe_dump(document))

    def start(self) -> psutil.Popen:
        command = [sys.executable, "-m", "kd_runtime.cli.main", "run", str(self.root / "job.yaml")]
        with (self.root / "run.log").open("ab") as log:
            return psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.proxy.environment()},
            )

    def student(self) -> str:
        """sha256 of the published weights."""
        pointer = json.loads((self.root / "out" / "kd.json").read_text())
        return body_sha256(self.root / "out" / pointer["path"] / "model.safetensors")

    def check(self, student: str) -> None:
        """The run has ended well: the same student, and no answer that was there was asked for, or paid for, again."""
        assert self.student() == student, self.text()
        self.proxy.check()

    def text(self) -> str:
        return (self.root / "run.log").read_text()[-3000:]


def kind_of(process: psutil.Process) -> str | None:
    """Which of our kinds a process is; None for what is none of them, or gone."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return next((kind for kind, part in KINDS.items() if part in line), None)


def family(root: psutil.Popen) -> list[psutil.Process]:
    """The process and all its descendants that live."""
    try:
        return [psutil.Process(root.pid), *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def strike(root: psutil.Popen, hits: Counter[str], chance: random.Random) -> None:
    """Kill -9 one process of the kind that was hit least; where that is `kd run`, all others must end by themselves."""
    members = [(kind, p) for p in family(root) if (kind := kind_of(p)) is not None]
    if not members:
        return
    least = min(hits[kind] for kind, _ in members)
    kind, victim = chance.choice([(k, p) for k, p in members if hits[k] == least])
    others = [p for _, p in members if p.pid != victim.pid]
    hits[kind] += 1
    victim.send_signal(signal.SIGKILL)
    if victim.pid == root.pid:
        root.wait()
        _, alive = psutil.wait_procs(others, timeout=GONE_SECONDS)
        assert not alive, f"outlived `kd run`: {[p.cmdline() for p in alive]}"


def ended(root: psutil.Popen, seconds: float, awaited: Set[str] = frozenset()) -> bool:
    """True where the process ends within so long, or before a process of an ``awaited`` kind is there."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit or (awaited and not awaited & {kind_of(p) for p in family(root)}):
        if root.poll() is not None:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def until() -> Iterator[ExitStack]:
    """What is entered here is left when the test ends."""
    with ExitStack() as stack:
        yield stack


def test_kills_at_random_change_nothing(tmp_path: Path, tiny_models: Path, until: ExitStack) -> None:
    undisturbed = Run(tmp_path / "undisturbed", tiny_models, until)
    started = time.monotonic()
    assert undisturbed.start().wait(timeout=RUN_SECONDS) == 0, undisturbed.text()
    length, wanted = time.monotonic() - started, undisturbed.student()
    undisturbed.check(wanted)

    chance, hits, number = random.Random(0), Counter[str](), 0
    run = Run(tmp_path / "disturbed-0", tiny_models, until)
    process = run.start()
    while hits.total() < KILLS:
        unhit = (
            KINDS.keys() - hits.keys()
        )  # on a slow machine a run may never come so far between two kills: the last wait
        awaited = unhit if hits.total() >= KILLS - 2 * len(unhit) else set()
        if not ended(process, chance.uniform(0.5, length / 4), awaited):
            strike(process, hits, chance)
            continue
        if process.returncode == 0:  # it got to its end: another job, from nothing
            run.check(wanted)
            number += 1
            run = Run(tmp_path / f"disturbed-{number}", tiny_models, until)
        process = run.start()
    for _ in range(3):
        if process.wait(timeout=RUN_SECONDS) == 0:
            break
        process = run.start()
    run.check(wanted)
    assert set(hits) == set(KINDS), f"kinds that were hit: {dict(hits)}"


def test_the_proxy_tells_what_is_asked_again_from_what_is_asked_after_a_loss(tmp_path: Path) -> None:
    lost, kept = Pair("aa", 0), Pair("bb", 1)
    store = open_store(f"file://{tmp_path}")
    with recording_proxy(store, SEED) as proxy:

        def ask(pair: Pair) -> None:
            body = json.dumps({"messages": [], "seed": request_seed(SEED, pair.row, pair.sample)})
            proxy.take("/8000/v1/chat/completions", body.encode())

        ask(lost)
        ask(kept)
        UnitStore(store, "ab" * 32, "w").commit([kept], [kept], [], [(b"{}", "jsonl")])
        ask(lost)
        assert proxy.asked_again() == []
        ask(kept)
        assert [asked.question for asked in proxy.asked_again()] == [request_seed(SEED, kept.row, kept.sample)]
