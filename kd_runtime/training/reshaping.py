"""A checkpoint that another number of ranks wrote, as one that any number loads: DeepSpeed's universal form.

`python -m kd_runtime.training.reshaping CHECKPOINT OUT` converts one, in a process of its own: DeepSpeed keeps what it has read
in memory until it ends.
"""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from kd_runtime.api.failures import StorageError
from kd_runtime.telemetry.processes import die_with_parent, end_tree, spawn
from kd_runtime.training.checkpoints import LOG


def universal(checkpoint: Path) -> Path:
    """Convert the checkpoint in the folder ``checkpoint``; the folder of its universal form.

    Each parameter's weight and both moments are put together from the ranks' shards: three times the trained parameters in
    fp32 on disk, twice that while it works.

    Raises:
        StorageError: DeepSpeed cannot convert it; the message names the log.
    """
    out = checkpoint.parent / "universal" / checkpoint.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = checkpoint.parent / "universal.log"
    command = [sys.executable, "-m", "kd_runtime.training.reshaping", str(checkpoint), str(out)]
    process = spawn(command, env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}, log=log)
    try:
        code = process.wait()
    finally:
        end_tree(process, 0)
    if code != 0:
        raise StorageError(
            f"checkpoint {checkpoint.name}: DeepSpeed could not convert it for another number of ranks (code {code}); see {log}"
        )
    shutil.copyfile(checkpoint / LOG, out / LOG)
    return out


def main(arguments: list[str]) -> None:
    """Convert ``arguments``: a checkpoint's folder, and the folder for its universal form."""
    die_with_parent()
    from deepspeed.checkpoint import ds_to_universal

    source, out = arguments
    ds_to_universal.main(
        Namespace(
            input_folder=source,
            output_folder=out,
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # it asks for facts of tensor parallelism that ours has none of
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
