"""`kd` (and `kubectl kd`): the command line. Each command's module imports what it needs when it runs."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from kd_runtime import __version__
from kd_runtime.api.failures import ExitClass, KDError, classify, disk_full
from kd_runtime.cli import chat, cluster, internals, jobs, logits, rejects, store
from kd_runtime.cli.consoles import console

app = typer.Typer(
    name="kd",
    help="Distil large language models into small ones, on Kubernetes or on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
jobs.add(app)
cluster.add(app)
store.add(app)
chat.add(app)
app.add_typer(rejects.app, name="rejects")
app.add_typer(logits.app, name="logits")
app.add_typer(internals.teacher, name="teacher")
app.add_typer(internals.stage, name="stage")
app.add_typer(internals.model, name="model")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; a failure prints one sentence and exits with its class (64 settings, 65 data, ...)."""
    try:
        app(standalone_mode=True)
    except KDError as error:
        console(soft_wrap=True, stderr=True).print(Text.assemble((error.exit_class.name, "red"), f": {error}"))
        sys.exit(int(error.exit_class))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(int(ExitClass.Done))
    except OSError as error:
        full = disk_full(error)
        if full is None:
            raise
        print(f"{ExitClass.Storage.name}: {full}", file=sys.stderr)
        sys.exit(int(ExitClass.Storage))
    except MemoryError as error:
        print(f"out of memory: {error}", file=sys.stderr)
        sys.exit(int(classify(error)))


if __name__ == "__main__":
    main()
