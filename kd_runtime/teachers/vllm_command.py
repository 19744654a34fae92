"""How vLLM's own server is started: its flags and its environment (pure)."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.teacher import Quantization
from kd_runtime.telemetry.processes import PARENT_VARIABLE

if TYPE_CHECKING:
    from kd_runtime.teachers.serve import ServeOptions

PLUGIN = "kd_score"
ENTRY = "kd_runtime.teachers.vllm_entry"
API_KEY_VARIABLE = "KD_TEACHER_KEY"
IDENTITY_VARIABLE = "KD_TEACHER_IDENTITY"
TOKENIZER_VARIABLE = "KD_TEACHER_TOKENIZER"
FAST_START_VARIABLE = "KD_VLLM_FAST_START"
CPU_KV_CACHE_GIB = "1"
QUANTIZATIONS = {
    Quantization.AWQ: "awq",
    Quantization.GPTQ: "gptq",
    Quantization.FP8: "fp8",
    Quantization.BitsAndBytes: "bitsandbytes",
    Quantization.CompressedTensors: "compressed-tensors",
}


def command(options: ServeOptions, *, cpu: bool) -> list[str]:
    """The command line. What is decided here comes after the runtime's flags, which therefore cannot undo it."""
    serving, length = options.serving, options.max_model_len or model_length(options.model_dir)
    flags: dict[str, object] = {
        "max-num-seqs": serving.max_num_seqs,
        "max-num-batched-tokens": max(serving.max_num_batched_tokens, length)
        if cpu
        else serving.max_num_batched_tokens,
        "gpu-memory-utilization": serving.gpu_memory_utilization,
        "tensor-parallel-size": options.parallelism.tensor,
        "pipeline-parallel-size": options.parallelism.pipeline,
        "quantization": QUANTIZATIONS[options.quantization] if options.quantization else None,
        "max-model-len": length,
        "max-logprobs": options.max_logprobs,
        "dtype": options.dtype,
        "host": options.host,
        "port": options.port,
        "served-model-name": options.served_name,
        "generation-config": "vllm",
        "distributed-executor-backend": "uni" if cpu and _one_rank(options) else None,
    }
    switches = ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    switches += ["--no-enable-chunked-prefill"] if cpu else []  # with it, a request with a seed can end the engine
    switches += ["--enforce-eager"] if serving.enforce_eager else []
    switches += ["--trust-remote-code"] if options.trust_remote_code else []
    named = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", ENTRY, "--model", str(options.model_dir), *options.extra_args, *named, *switches]


def environment(options: ServeOptions, inherited: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """The environment of vLLM's processes."""
    env = dict(inherited)
    if cpu:
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB)  # else it takes a large share of the memory
        if _one_rank(options):
            env[FAST_START_VARIABLE] = "1"
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
                "0"  # else "uni" becomes "mp", whose one worker is bound to one core
            )
        if options.serving.enforce_eager:
            env.setdefault("TORCHDYNAMO_DISABLE", "1")  # else the first scored prompt compiles a kernel, eager or not
    env |= options.extra_env
    env |= {
        "VLLM_PLUGINS": PLUGIN,
        "HF_HUB_OFFLINE": "1",  # the model is a local directory: nothing may be looked up
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    secrets = {
        API_KEY_VARIABLE: options.api_key,
        IDENTITY_VARIABLE: options.teacher_key,
        TOKENIZER_VARIABLE: options.tokenizer,
    }
    for name, value in secrets.items():  # by environment: a command line can be read by every user of the machine
        env.pop(name, None)
        if value is not None:
            env[name] = value
    env.pop(PARENT_VARIABLE, None)
    env.pop("VLLM_API_KEY", None)
    env.pop("VLLM_PORT", None)  # a Kubernetes Service called vllm would set it to an address
    return env


def model_length(model_dir: Path) -> int:
    """The longest row that a model's own config allows, in tokens.

    Raises:
        SettingsError: the config is unreadable, or says none.
    """
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int((config.get("text_config") or config)["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: does not say max_position_embeddings; set the teacher's maxModelLen") from error


def _one_rank(options: ServeOptions) -> bool:
    return options.parallelism.tensor * options.parallelism.pipeline == 1


def on_cpu() -> bool:
    """True where the installed vLLM is a build for CPUs (read from its version, without importing it)."""
    return "cpu" in importlib.metadata.version("vllm")
