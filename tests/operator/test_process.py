"""The operator's process: its flags, what it imports, and where tests let it die."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from aiohttp.test_utils import make_mocked_request
from job_children import SETTINGS
from kd_operator import metrics
from kd_operator.__main__ import BEHIND_SECONDS, Operator, arguments
from kd_operator.cluster.failpoints import from_environment, inert
from kd_operator.cluster.lease import Elector
from kd_operator.progress.board import Board
from kd_operator.settings import Settings
from kd_operator.triggers import Triggers
from operator_world import LOOP, World

IMAGES = ["--plan-image", "operator:1", "--runtime-image", "runtime:1"]
HEAVY = ("torch", "transformers", "vllm", "numpy", "pyarrow", "boto3", "kd_runtime.planning", "kd_runtime.artifacts")


def test_flags_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "kubedistill")
    monkeypatch.setenv("POD_NAME", "operator-7d9f-x2x")
    words = ["--watch-namespace", "a", "--watch-namespace", "b", "--watch-namespace", "a", "--port", "9090"]
    labels = ["--operator-label", "app=kd", "--operator-label", "tier=control"]
    settings, level = arguments([*IMAGES, *words, *labels, "--log-level", "DEBUG", "--progress-url", "http://kd:9090"])
    assert settings == Settings(
        namespace="kubedistill",
        identity="operator-7d9f-x2x",
        plan_image="operator:1",
        runtime_image="runtime:1",
        watch_namespaces=("a", "b"),
        progress_url="http://kd:9090",
        port=9090,
        operator_labels=(("app", "kd"), ("tier", "control")),
    )
    assert level == "DEBUG"


def test_what_no_flag_says_has_the_settings_default() -> None:
    settings, _ = arguments([*IMAGES, "--namespace", "n", "--identity", "i"])
    assert settings == Settings(namespace="n", identity="i", plan_image="operator:1", runtime_image="runtime:1")


@pytest.mark.parametrize("words", [[], IMAGES[:2], [*IMAGES, "--operator-label", "=x"], [*IMAGES, "--workers", "many"]])
def test_what_cannot_be_understood_ends_the_process(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(words)


def test_the_process_imports_nothing_heavy() -> None:
    program = f"import sys, kd_operator.__main__; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_failpoints_are_inert_unless_asked_for() -> None:
    assert from_environment({}) is inert
    assert from_environment({"KD_FAILPOINT": ""}) is inert


@pytest.mark.parametrize(
    ("said", "passed"),
    [("after-create:1", 4), ("before-create:2", 7), ("*:3", 3), ("after-status:9", None)],
)
def test_a_failpoint_kills_the_process_where_it_says(said: str, passed: int | None) -> None:
    program = (
        "from kd_operator.cluster.failpoints import from_environment as f\n"
        f"point = f({{'KD_FAILPOINT': {said!r}}})\n"
        "names = ['before-status', 'after-status', 'before-create', 'after-create']\n"
        "for name in names * 2:\n"
        "    print(name, flush=True)\n"
        "    point(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == (passed or 8)
    assert done.returncode == (-signal.SIGKILL if passed else 0)


def test_a_new_leader_is_healthy_however_long_jobs_were_due_while_it_stood_by_and_hangs_where_it_leaves_them() -> None:
    world = World()
    worker, access = world.operators[0].worker, world.operators[0].access
    elector = Elector(access, "kd", "lease", "me", worker.now, world.seconds)  # type: ignore[arg-type]
    triggers = Triggers(worker.job_changed, worker.child_changed, worker.runtime_changed)
    operator = Operator(SETTINGS, access, worker, elector, triggers, Board())  # type: ignore[arg-type]

    def healthy_after(seconds: float) -> bool:
        world.server.now += timedelta(seconds=seconds)
        return asyncio.run(operator._healthy(make_mocked_request("GET", "/healthz"))).status == 200

    worker.job_changed(("team", "tutor"))
    assert healthy_after(24 * 3600)
    elector._lead(True)
    assert healthy_after(0)
    assert healthy_after(BEHIND_SECONDS)
    assert not healthy_after(1)
    elector._lead(False)
    elector._lead(True)
    assert healthy_after(0)


def test_what_waited_for_another_leader_counts_from_when_this_one_leads() -> None:
    world = World()
    worker = world.operators[0].worker

    def counted() -> list[float]:
        names = ("queue_wait_seconds_sum", "reaction_seconds_sum", "reaction_seconds_count")
        return [metrics.REGISTRY.get_sample_value(f"kubedistill_{name}") or 0.0 for name in names]

    async def work_until_nothing_is_due() -> None:
        work = LOOP.create_task(worker.run())
        async with asyncio.timeout(60):
            while not worker.looked_at or (worker.queue.next_due() or 0.0) <= world.seconds():
                await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait([work])

    world.apply()
    world.server.now += timedelta(days=1)
    leads = world.seconds()
    worker.since = lambda: leads
    world.server.now += timedelta(seconds=2)
    before = counted()
    LOOP.run_until_complete(work_until_nothing_is_due())
    waited, reacted, children = (now - was for now, was in zip(counted(), before, strict=True))
    assert children > 0
    assert waited == pytest.approx(2.0)
    assert reacted <= 2.0 * children
