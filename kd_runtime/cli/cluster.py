"""Commands about jobs on a cluster (`kubectl kd …`): submit, watch, logs, report, suspend, resume, retry, explain."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from kd_runtime.api.failures import SettingsError
from kd_runtime.cli.consoles import console

if TYPE_CHECKING:
    from kd_runtime.remote.cluster import Cluster


def _jobs(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from kd_runtime.remote.completion import job_names

    return job_names(context.params, incomplete)


def _stages(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from kd_runtime.remote.completion import part_names

    return part_names(context.params, incomplete, logs=False)


def _parts(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from kd_runtime.remote.completion import part_names

    return part_names(context.params, incomplete, logs=True)


JobArgument = Annotated[str, typer.Argument(help="The job's name.", autocompletion=_jobs)]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="The job's namespace; else the context's.")
]
ContextOption = Annotated[str | None, typer.Option("--context", help="The kubeconfig's context; else its current one.")]
KubeconfigOption = Annotated[
    Path | None, typer.Option("--kubeconfig", help="The kubeconfig; else $KUBECONFIG, else ~/.kube/config.")
]


def add(app: typer.Typer) -> None:
    """Register the commands. `report` takes the place of the local one, which it calls for files."""
    app.command(rich_help_panel="On a cluster")(submit)
    app.command(rich_help_panel="On a cluster")(watch)
    app.command(rich_help_panel="On a cluster")(logs)
    app.command(rich_help_panel="On a cluster")(suspend)
    app.command(rich_help_panel="On a cluster")(resume)
    app.command(rich_help_panel="On a cluster")(retry)
    app.command(rich_help_panel="On a cluster")(explain)
    app.command()(report)
    app.command("__complete", hidden=True, context_settings=COMPLETION_SETTINGS)(complete)


def submit(
    file: Annotated[Path, typer.Argument(help="The job's YAML file.", exists=True, dir_okay=False)],
    namespace: NamespaceOption = None,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Then watch it until it ends.")] = False,
    force: Annotated[
        bool, typer.Option("--force-conflicts", help="Take over fields that another tool has set.")
    ] = False,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Check a job against the cluster's runtime and apply it; typed again, it changes nothing."""
    from kd_runtime.remote.submission import submit as submit_file
    from kd_runtime.remote.watching import watch_job

    cluster = _connect(namespace or _namespace_in(file), context, kubeconfig)
    done = submit_file(cluster, file, force=force)
    out = console()
    for job in done:
        for note in job.notes:
            out.print(Text.assemble(("warning ", "yellow"), note), soft_wrap=True)
        out.print(Text.assemble((job.what, "green"), f" {job.name} in namespace {job.namespace}"), soft_wrap=True)
    if follow and len(done) == 1:
        raise typer.Exit(int(watch_job(cluster, done[0].name, out)))
    if follow:
        raise SettingsError(
            f"--watch: {file} holds {len(done)} jobs; watch one with `kd watch JOB`, or all with `kd watch`"
        )
    out.print(Text(f"watch it: kubectl kd watch {done[0].name} -n {cluster.namespace}", style="dim"), soft_wrap=True)


def watch(
    job: Annotated[
        str | None, typer.Argument(help="The job's name; else all of the namespace.", autocompletion=_jobs)
    ] = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Show a job live until it ends; the exit code is its class (0 done, 64 settings, 65 data, ...)."""
    from kd_runtime.remote.watching import watch_job, watch_namespace

    cluster = _connect(namespace, context, kubeconfig)
    if job is None:
        watch_namespace(cluster, console())
        return
    raise typer.Exit(int(watch_job(cluster, job, console())))


def logs(
    job: JobArgument,
    stage: Annotated[
        str | None,
        typer.Argument(help="A stage, `plan` or `teacher`; else what failed or runs.", autocompletion=_parts),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage ends.")] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the container's run before this one.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Only so many last lines of each pod.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Of that attempt; else the newest.")] = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Print what all pods of a stage wrote, each line behind its pod, in the order of time."""
    from kd_runtime.remote.logs import show_logs

    if follow and previous:
        raise SettingsError(
            "--follow and --previous exclude each other: a run that is over writes nothing more; leave one out"
        )
    show_logs(
        _connect(namespace, context, kubeconfig), job, stage, console(soft_wrap=True), follow=follow, previous=previous,
        tail=tail, attempt=attempt,
    )  # fmt: skip


def report(
    job: Annotated[
        str,
        typer.Argument(help="A job of the cluster, or the YAML file of one that was run here.", autocompletion=_jobs),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the HTML.")] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="S3 endpoint, where this machine reaches the store by another one.")
    ] = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Open the HTML report of a job: rendered anew for one that was run here, fetched from the store for a cluster's."""
    if Path(job).is_file():
        from kd_runtime.cli import jobs

        jobs.report(Path(job), output)
        return
    if job.endswith((".yaml", ".yml")) or "/" in job:
        raise SettingsError(
            f"{job}: there is no such file; name a job of the cluster, or the file of one that was run here"
        )
    from kd_runtime.remote.jobs import find_job
    from kd_runtime.remote.reports import fetch_report, job_store, keep_report, open_in_browser

    cluster = _connect(namespace, context, kubeconfig)
    found = find_job(cluster, job)
    path = keep_report(fetch_report(job_store(found, endpoint), found), found, output)
    opened = output is None and open_in_browser(path)
    console(soft_wrap=True).print(Text(f"{path}{' (opened in your browser)' if opened else ''}"))


def suspend(
    job: JobArgument,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Free a job's GPUs: training writes a checkpoint, then its pods go."""
    from kd_runtime.remote.control import suspend as ask

    _say(ask(_connect(namespace, context, kubeconfig), job))


def resume(
    job: JobArgument,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Let a suspended job go on where it was."""
    from kd_runtime.remote.control import resume as ask

    _say(ask(_connect(namespace, context, kubeconfig), job))


def retry(
    job: JobArgument,
    stage: Annotated[str, typer.Argument(help="The stage.", autocompletion=_stages)],
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Try a failed stage once more, or ask a teacher stage's rejected rows again."""
    from kd_runtime.remote.control import retry as ask

    _say(ask(_connect(namespace, context, kubeconfig), job, stage))


def explain(
    job: JobArgument,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Say why a job is not running, and what to do."""
    from kd_runtime.remote.evidence import gather
    from kd_runtime.remote.explain import explain as answer
    from kd_runtime.remote.explain import explanation_view

    evidence, now = gather(_connect(namespace, context, kubeconfig), job), datetime.now(UTC)
    console().print(explanation_view(evidence, answer(evidence, now), now))


COMPLETION_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
OFFERED, FILES = ":4", ":0"
"""Cobra's directives: offer just these; or, where there are none, names of files."""


def complete(context: typer.Context) -> None:
    """What `kubectl kd …` offers after TAB: kubectl asks an executable `kubectl_complete-kd` for it (docs/operations.md)."""
    import contextlib
    import io
    import os
    import shlex

    *typed, incomplete = context.args or [""]
    words = f"kd {shlex.join(typed)} {incomplete}" if typed else f"kd {incomplete}"
    os.environ |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args", COMPLETE: "complete_fish"}
    offered = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(offered):
        context.find_root().command.main(args=[], prog_name="kd", complete_var=COMPLETE)
    found = offered.getvalue().strip()
    print(f"{found}\n{OFFERED}" if found else FILES)


COMPLETE = "_KD_COMPLETE"
"""The variable by which typer is asked for completions; fish's form is Cobra's: a value, a tab, what it means."""


def _connect(namespace: str | None, context: str | None, kubeconfig: Path | None) -> Cluster:
    from kd_runtime.remote.cluster import connect

    return connect(namespace, context, kubeconfig)


def _namespace_in(file: Path) -> str | None:
    """The one namespace that the file's jobs name, as kubectl takes it."""
    from kd_runtime.api.parse import load_documents

    found = [document.get("metadata") for document in load_documents(file)]
    named = {str(one["namespace"]) for one in found if isinstance(one, dict) and one.get("namespace") is not None}
    return named.pop() if len(named) == 1 else None


def _say(text: str) -> None:
    console(soft_wrap=True).print(Text(text))
