"""DeepSpeed's part: its configuration from ours, the engine, and the trained weights gathered from its shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import Offload, Precision, Train
from kd_runtime.training.task import zero_stage

OWNED = {
    "train_batch_size": "globalBatchSize",
    "train_micro_batch_size_per_gpu": "microBatchSize",
    "gradient_accumulation_steps": "microBatchSize",
    "gradient_clipping": "optimizer.gradientClipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16.enabled": "precision",
    "fp16": "precision",
    "amp": "precision",
    "zero_optimization.stage": "deepspeed.zeroStage",
    "zero_optimization.offload_optimizer.device": "deepspeed.offloadOptimizer",
    "zero_optimization.offload_param.device": "deepspeed.offloadParameters",
    "zero_optimization.cpu_offload": "deepspeed.offloadOptimizer",
}
"""What of DeepSpeed's configuration other fields decide."""

BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced together; DeepSpeed's default would take 2 GB of buffers for any model."""


def deepspeed_config(train: Train) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, with ``deepspeed.config`` merged in.

    Batch sizes are 1 because the loop decides what a step is, and the loss is normalised before DeepSpeed sees it.

    Raises:
        SettingsError: ``deepspeed.config`` sets what another field decides.
    """
    theirs = train.deepspeed.config
    for path, field in OWNED.items():
        if _at(theirs, path) is not None:
            raise SettingsError(
                f"train.deepspeed.config.{path}: {_at(theirs, path)!r} is decided by train.{field}; set that"
            )
    return _merged(_base(train), theirs)


def _base(train: Train) -> dict[str, Any]:
    bf16 = train.precision is Precision.bf16
    zero: dict[str, Any] = {"stage": zero_stage(train), "reduce_bucket_size": BUCKET_ELEMENTS}
    if train.deepspeed.offload_optimizer is Offload.CPU:
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.deepspeed.offload_parameters is Offload.CPU:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.optimizer.gradient_clipping,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {}),
    }


def loading(config: Mapping[str, Any], *, universal: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for an engine that loads checkpoints in the universal form, or in that of as many ranks."""
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": universal}}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], value) if nested else value
    return result


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def init_distributed() -> None:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe."""
    import deepspeed

    # Compiles C++ at start where it is left on: no compiler in a pod, and two minutes where there is one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


@contextmanager
def sharded_loading(config: Mapping[str, Any]) -> Iterator[None]:
    """Models that are loaded inside are cut into shards at once where the stage is ZeRO-3."""
    if config["zero_optimization"]["stage"] < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(dict(config))
    yield
    del keep_alive


def start_engine(student: torch.nn.Module, train: Train, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine over ``student`` with AdamW.

    Raises:
        SettingsError: DeepSpeed refuses the configuration.
    """
    import deepspeed

    groups = parameter_groups(student, train.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=train.optimizer.learning_rate, betas=_betas(train), fused=True)
    try:
        engine, *_ = deepspeed.initialize(model=student, optimizer=optimizer, config=config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"train.deepspeed.config: {where}: {first['msg']} (DeepSpeed)") from error
    return engine


def _betas(train: Train) -> tuple[float, float]:
    first, second = train.optimizer.betas
    return first, second


def parameter_groups(student: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters: matrices decay; biases and norms do not, as is usual."""
    trained = [p for p in student.parameters() if p.requires_grad]
    decayed = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) >= 2]
    plain = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def gathered_state(model: torch.nn.Module, stage: int, rank: int) -> dict[str, torch.Tensor]:
    """All trained and frozen weights of ``model`` on the CPU of rank 0, by name; empty on the others."""
    if stage < 3:
        return {name: value.detach().cpu() for name, value in model.state_dict().items()} if rank == 0 else {}
    import deepspeed

    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {}
    for name, value in model.state_dict().items():  # its names: buffers that are not saved are left out
        if name not in parameters:
            state[name] = value.detach().cpu()
            continue
        with deepspeed.zero.GatheredParameters([parameters[name]]):
            if rank == 0:
                state[name] = parameters[name].detach().cpu().clone()
    return state if rank == 0 else {}
