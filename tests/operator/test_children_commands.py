"""What pods run is what `kd` takes: every command line of every child is parsed by the real command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from job_children import MANIFESTS, PLAN, container_of, context, context_of, every_child, job, only, without_plan
from kd_operator.children import build

from kd_runtime.cli.main import app


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of a `kd` command line, as the command would get them. Raises click's UsageError."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    with command.make_context("kd", list(arguments)) as found:
        return dict(found.params)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kd_takes_every_command_line(path: Path) -> None:
    for child in every_child(context_of(path)):
        if child.manifest["kind"] in ("Job", "Deployment"):
            container = container_of(child.manifest)
            assert container["command"] == ["kd"]
            # what the plan pod reads is mounted there only
            parsed([word.replace("/etc/kubedistill/", "/nowhere/") for word in container["args"]])


def test_a_stage_is_told_store_plan_name_and_attempt() -> None:
    options = parsed(container_of(only(build.stage(context(job()), "answers", 7, teacher_attempt=1)))["args"])
    assert options["store"] == "s3://team-a/kd/"
    assert options["plan"] == PLAN
    assert (options["name"], options["attempt"]) == ("answers", 7)
    assert options["endpoint"] == "http://s3.team.svc:9000"
    assert options["region"] is None


def test_a_teacher_is_told_which_one_it_is_and_listens_to_all() -> None:
    options = parsed(container_of(only(build.teacher(context(job()), "teacher", 1)))["args"])
    assert (options["store"], options["plan"], options["name"]) == ("s3://team-a/kd/", PLAN, "teacher")
    assert (options["host"], options["port"]) == ("0.0.0.0", 8000)


def test_the_plan_is_made_first_and_only_looked_up_later() -> None:
    ctx = context(job())
    first = parsed(container_of(only(build.plan_job(without_plan(ctx), 1, retry=None)))["args"])
    again = parsed(container_of(only(build.plan_job(ctx, 2, retry="answers/n1")))["args"])
    assert (first["plan"], first["retry"]) == (None, None)
    assert (again["plan"], again["retry"]) == (PLAN, "answers/n1")
    assert str(first["job"]) == "/etc/kubedistill/job.json"
    assert str(first["runtime"]) == "/etc/kubedistill/runtime.json"
