"""A gang that is killed, drained or stuck: how it ends, and that going on gives the very bits of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from training.tiny_runs import Made, TinyRun, gang_that, gone_on, kill_all, make, newest, settings

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.result import StageResult
from kd_runtime.training.gang import Gang, GangError
from kd_runtime.training.signs import Sign

pytestmark = pytest.mark.runtime

SETTINGS = {"epochs": 4, "checkpoint": {"everySteps": 2}, "lora": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Made:
    return make(tmp_path_factory.mktemp("rows"), tiny_models, 21)


Runs = Callable[..., TinyRun]


@pytest.fixture(scope="module")
def prepared(made: Made, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    def run(ranks: int, stage: int, **changes: Any) -> TinyRun:
        options = {**SETTINGS, "deepspeed": {"zeroStage": stage}, **changes}
        folder = tmp_path_factory.mktemp("run")
        return TinyRun(made, tiny_models / "student", folder, settings(**options), ranks)

    return run


def no_rank_lives(run: TinyRun) -> bool:
    mine = str(run.folder)
    return not [p.pid for p in psutil.process_iter(["cmdline"]) if any(mine in a for a in p.info["cmdline"] or ())]


@pytest.mark.parametrize(
    ("ranks", "stage", "changes"),
    [
        (1, 0, {}),
        pytest.param(2, 0, {}, marks=pytest.mark.further),
        (2, 2, {}),
        pytest.param(2, 3, {}, marks=pytest.mark.further),
        (1, 1, {"lora": {"rank": 4, "dropout": 0.1}}),
        pytest.param(2, 2, {"precision": "bf16"}, marks=pytest.mark.further),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(prepared: Runs, ranks: int, stage: int, changes: Any) -> None:
    changes = {"epochs": 40, **changes}  # 120 steps: far more than pass between two looks of the parent
    undisturbed = prepared(ranks, stage, **changes).run()
    killed = prepared(ranks, stage, **changes)
    with pytest.raises(GangError) as ended:
        gang_that(killed, kill_all).run()
    assert ended.value.exit_class is ExitClass.Transient
    step = newest(killed)[0].step
    assert step >= 6 and step % 2 == 0
    gone_on(killed)
    assert killed.records == undisturbed.records
    assert killed.sha256 == undisturbed.sha256


def test_what_a_gang_said_that_ran_there_before_is_not_taken_for_this_ones(prepared: Runs) -> None:
    run = prepared(1, 0, epochs=40)
    (run.folder / "out").mkdir()
    StageResult(exit_class=ExitClass.BadSettings, message="old").write(str(run.folder / "out" / "result-0.json"))
    with pytest.raises(GangError, match="rank 0 was ended by signal 9 and left no result"):
        gang_that(run, kill_all).run()


def test_sigterm_to_one_rank_drains_all_at_the_same_step(prepared: Runs) -> None:
    undisturbed = prepared(2, 2, epochs=60).run()
    drained = prepared(2, 2, epochs=60, checkpoint={"everySteps": 1000})
    sent = False

    def terminate(gang: Gang, sign: Sign) -> None:
        nonlocal sent
        if sign.phase == "training" and sign.step >= 2 and not sent:
            sent = True
            gang._ranks[1].send_signal(signal.SIGTERM)

    gang = gang_that(drained, terminate)
    with pytest.raises(GangError, match=r"drained after step (\d+) of 180") as ended:
        gang.run()
    assert ended.value.exit_class is ExitClass.Drained
    assert [process.returncode for process in gang._ranks.values()] == [80, 80]
    step = newest(drained)[0].step
    assert f"after step {step} " in str(ended.value)
    assert gone_on(drained).first_step == step + 1
    assert drained.records == undisturbed.records
    assert drained.sha256 == undisturbed.sha256


def test_sigterm_to_the_parent_is_passed_on(prepared: Runs) -> None:
    run = prepared(2, 0, epochs=1000, checkpoint={"everySteps": 100_000})

    def terminate(gang: Gang, sign: Sign) -> None:
        if sign.phase == "training" and gang._stopped_at is None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(GangError) as ended:
        gang_that(run, terminate).run()
    assert ended.value.exit_class is ExitClass.Drained


def test_ranks_that_do_not_agree_in_time_are_killed(prepared: Runs) -> None:
    run = prepared(2, 0, epochs=1000)

    def stop_one_then_terminate(gang: Gang, sign: Sign) -> None:
        if sign.phase == "training" and gang._stopped_at is None:
            gang._ranks[1].send_signal(signal.SIGSTOP)
            gang._stop(signal.SIGTERM, None)

    with pytest.raises(GangError, match="before a checkpoint") as ended:
        gang_that(run, stop_one_then_terminate, drain_seconds=-18.0).run()
    assert ended.value.exit_class is ExitClass.Killed
    assert no_rank_lives(run)


def test_a_gang_without_progress_is_ended_as_a_stall(prepared: Runs) -> None:
    run = prepared(2, 0, epochs=1000)

    def freeze(gang: Gang, sign: Sign) -> None:
        if sign.phase == "training":
            gang.stall_seconds = 3.0
            gang._ranks[1].send_signal(signal.SIGSTOP)

    with pytest.raises(GangError, match=r"no rank made progress for 3 s .*rank 1: training") as ended:
        gang_that(run, freeze).run()
    assert ended.value.exit_class is ExitClass.Transient
    done = max(sign.step for sign in run.signs if sign.phase == "training")
    assert ended.value.position == f"step {done + 1}"
    assert no_rank_lives(run)


def test_the_others_notice_a_lost_rank_and_none_is_left(prepared: Runs) -> None:
    run = prepared(2, 1, epochs=1000)

    def lose_one(gang: Gang, sign: Sign) -> None:
        if sign.phase == "training":
            gang._ranks[1].kill()

    gang = gang_that(run, lose_one)
    with pytest.raises(GangError) as ended:
        gang.run()
    assert ended.value.exit_class is ExitClass.Transient
    assert gang._ranks[0].returncode == ExitClass.PeerLost
    assert no_rank_lives(run)


PARENT = """
import sys
from pathlib import Path
from kd_runtime.telemetry.processes import free_port
from kd_runtime.training.gang import Gang, Placement
from kd_runtime.training.task import RankTask

def heard(sign):
    if sign.phase == "training":
        print("training", flush=True)

path = Path(sys.argv[1])
task = RankTask.read(path)
Gang(path, task.out, Placement(2, 0, 2, "127.0.0.1", free_port()), 1, 120.0, 60.0, heard).run()
"""


def test_no_rank_outlives_its_parent(prepared: Runs) -> None:
    run = prepared(2, 0, epochs=1000)
    task = run.task()
    task.out.mkdir(parents=True)
    task.write(task.out / "task.json")
    command = [sys.executable, "-c", PARENT, str(task.out / "task.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "training\n"
        ranks = psutil.Process(parent.pid).children()
        assert len(ranks) == 2
        parent.kill()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert alive == []


def test_the_train_step_leaves_nothing(prepared: Runs) -> None:
    run = prepared(2, 3)
    run.run(rehearsal=True, out=run.folder / "rehearsal")
    left = {path.name for path in (run.folder / "rehearsal").iterdir()}
    assert not {"model", "train.jsonl", "checkpoint"} & left
    assert run.objects == []
