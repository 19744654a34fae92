"""The main module of vLLM's API process: vLLM's own server, which starts three times as fast on a CPU.

Start-up is imports (8-13 s each on two cores, measured). vLLM makes them three times: in the API process, in a process that
only looks at the model's class so that CUDA stays untouched, and in the engine's, spawned afresh because with several
workers OpenMP's settings must differ. With one worker on a CPU neither reason holds: the class is looked at here, and the
engine forked off, as vLLM does on GPUs.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import TypeVar

from kd_runtime.teachers.vllm_command import FAST_START_VARIABLE

T = TypeVar("T")


def start_fast() -> None:
    """Replace two private functions of vLLM 0.32; another version keeps its own, and starts in its own time."""
    import vllm
    import vllm.model_executor.models.registry as registry
    import vllm.v1.engine.utils as engine

    if not vllm.__version__.startswith("0.32."):
        return
    registry._run_in_subprocess = _call
    engine.get_mp_context = lambda: multiprocessing.get_context("fork")


def _call(function: Callable[[], T]) -> T:
    return function()


if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    if os.environ.pop(FAST_START_VARIABLE, None):
        start_fast()
    main()
