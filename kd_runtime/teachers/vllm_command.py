"""How vLLM's own server is started: its flags and its environment (pure)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kd_runtime.api.teacher import Quantization

if TYPE_CHECKING:
    from kd_runtime.teachers.serve import ServeOptions

PLUGIN = "kd_score"
ENTRY = "kd_runtime.teachers.vllm_entry"
API_KEY_VARIABLE = "KD_TEACHER_KEY"
IDENTITY_VARIABLE = "KD_TEACHER_IDENTITY"
CPU_KV_CACHE_GIB = "1"
QUANTIZATIONS = {
    Quantization.AWQ: "awq",
    Quantization.GPTQ: "gptq",
    Quantization.FP8: "fp8",
    Quantization.BitsAndBytes: "bitsandbytes",
    Quantization.CompressedTensors: "compressed-tensors",
}


def command(options: ServeOptions) -> list[str]:
    """The command line. What a user may not set twice comes last, so that the runtime's flags cannot undo it."""
    serving = options.serving
    flags: dict[str, object] = {
        "max-num-seqs": serving.max_num_seqs,
        "max-num-batched-tokens": serving.max_num_batched_tokens,
        "gpu-memory-utilization": serving.gpu_memory_utilization,
        "tensor-parallel-size": options.parallelism.tensor,
        "pipeline-parallel-size": options.parallelism.pipeline,
        "quantization": QUANTIZATIONS[options.quantization] if options.quantization else None,
        "max-model-len": options.max_model_len,
        "max-logprobs": options.max_logprobs,
        "dtype": options.dtype,
        "host": options.host,
        "port": options.port,
        "served-model-name": options.served_name,
        "generation-config": "vllm",
    }
    switches = ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    switches += ["--enforce-eager"] if serving.enforce_eager else []
    switches += ["--trust-remote-code"] if options.trust_remote_code else []
    named = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", ENTRY, "--model", str(options.model_dir), *options.extra_args, *named, *switches]


def environment(options: ServeOptions, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of vLLM's processes."""
    env = dict(inherited)
    env.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB)  # else it takes a large share of the memory
    env |= options.extra_env
    env |= {
        "VLLM_PLUGINS": PLUGIN,
        "HF_HUB_OFFLINE": "1",  # the model is a local directory: nothing may be looked up
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    secrets = {API_KEY_VARIABLE: options.api_key, IDENTITY_VARIABLE: options.teacher_key}
    for name, value in secrets.items():  # by environment: a command line can be read by every user of the machine
        env.pop(name, None)
        if value is not None:
            env[name] = value
    env.pop("VLLM_API_KEY", None)
    env.pop("VLLM_PORT", None)  # a Kubernetes Service called vllm would set it to an address
    return env
