"""The distillation loss as a module that owns the output head.

    head = SparseKDHead(model.lm_head, vocab=V, divergence="ForwardKL", parameters=Parameters(), temperature=1.0,
                        logit_scale=1.0, softcap=None, chunk_positions=None)
    loss, sums = head(hidden, label_ids, top_ids, top_lp, tail_lp, kd_mask, ce_mask,
                      kd_weight=world * alpha / N_kd, ce_weight=world * (1 - alpha) / N_ce,
                      rounding=None, entropy=None, draws=0, per_position=False)
    loss.backward()

``hidden`` [P, H] are the backbone's last hidden states (after the final norm) of the positions *before* scored tokens;
``loss`` = kd_weight * sums.kd + ce_weight * sums.ce (each weight a number, or [P]: one of each position) is the only output
with a gradient. All N are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kd_runtime.api.failures import SettingsError
from kd_runtime.losses.chunked import STATS, Gradients, Settings, Targets, walk
from kd_runtime.losses.divergences import FIRST_ORDER, Parameters
from kd_runtime.losses.divergences import divergence as divergence_named
from kd_runtime.losses.rows import RowPass
from kd_runtime.losses.triton_rows import row_pass_for
from kd_runtime.planning.memory import chunk_positions


@dataclass(frozen=True)
class LossSums:
    """Sums over a call's positions, detached, float64: add them over micro-batches and ranks, then divide by counts."""

    kd: Tensor
    """Sum of the divergence (times T squared) over the positions of ``kd_mask``, nats."""
    ce: Tensor
    """Sum of the label's negative logprob over the positions of ``ce_mask``, nats."""
    ce_alone: Tensor
    """Of it, what positions outside ``kd_mask`` have."""
    kd_count: Tensor
    """Positions of ``kd_mask``."""
    ce_count: Tensor
    """Positions of ``ce_mask``."""
    stats: dict[str, Tensor]
    """Sums over ``kd_mask``: teacher_head_mass, student_head_mass, top1_agree, topk_overlap; student_entropy over
    the positions of either mask, which ``positions`` counts."""
    positions: dict[str, Tensor] | None = None
    """With ``per_position``: kd, ce and each statistic as [P], unmasked but for kd."""


class SparseKDHead(nn.Module):
    """KD against a teacher's head and tail bucket, and cross-entropy, without a [positions, vocabulary] tensor.

    ``lm_head`` is an ``nn.Linear`` or its weight [V or more, H]; the same Parameter is registered here, so tied
    embeddings stay tied and ZeRO-3 gathers it once a pass. ``vocab`` is the tokenizer's true size V: rows of the
    weight beyond it are padding, with zero probability and zero gradient. Raises SettingsError for what it cannot do:
    a quantised or LoRA-wrapped head, an unknown divergence, a temperature that is not positive. ``temperature`` is that
    of the targets: the reader gives head and tail at it. ``row_pass`` None: the device's.
    """

    def __init__(
        self,
        lm_head: nn.Module | nn.Parameter,
        *,
        vocab: int,
        divergence: str = "ForwardKL",
        parameters: Parameters | None = None,
        temperature: float = 1.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        chunk_positions: int | None = None,
        row_pass: RowPass | None = None,
    ) -> None:
        super().__init__()
        self.weight, bias = _parameters(lm_head)
        self.register_parameter("bias", bias)
        self.logit_scale = logit_scale
        self.chunk_positions = chunk_positions
        self.divergence = divergence
        function = divergence_named(divergence, parameters)
        self.row_pass = row_pass
        self.settings = Settings(function, vocab, _positive(temperature), softcap, divergence in FIRST_ORDER)

    def adjust(self, *, temperature: float, parameters: Parameters) -> None:
        """Change temperature and parameters from the next forward pass on; SettingsError where they are impossible."""
        function = divergence_named(self.divergence, parameters)
        self.settings = replace(self.settings, divergence=function, temperature=_positive(temperature))

    def forward(
        self,
        hidden: Tensor,
        label_ids: Tensor,
        top_ids: Tensor | None,
        top_lp: Tensor | None,
        tail_lp: Tensor | None,
        kd_mask: Tensor,
        ce_mask: Tensor,
        *,
        kd_weight: float | Tensor = 1.0,
        ce_weight: float | Tensor = 0.0,
        rounding: Tensor | None = None,
        entropy: Tensor | None = None,
        draws: int = 0,
        per_position: bool = False,
    ) -> tuple[Tensor, LossSums]:
        """The loss of P positions.

        ``hidden`` [P, H]; ``label_ids`` [P] (any value where ``ce_mask`` is false); ``top_ids`` [P, K] integers
        (negative = no entry) with ``top_lp`` [P, K] and ``tail_lp`` [P] in nats at the temperature, normalised over
        K+1, or all three None without KD; ``kd_mask``, ``ce_mask`` [P] bool; weights are scalars or [P].

        With ``rounding`` [P], what storing rounded of the targets (`RowTargets.rounding`), divergences of first order in
        it (TVD) measure to the nearest distribution that is stored alike: 0, with gradient 0, where the student is it.

        Profile Unbiased: the last ``draws`` entries are draws from the tail with the mass that they stand for, and
        nothing is left in ``tail_lp`` (-inf). With ``entropy`` [P], the teacher's in nats at the temperature, the value
        reported is sum t (-log q) - entropy, whose mean over draws is the divergence. Forward KL only.
        """
        if draws and self.divergence != "ForwardKL":
            raise SettingsError(
                f"objective.divergence: {self.divergence} is biased on draws from the tail (profile Unbiased); use "
                "ForwardKL, or capture with profile Exact"
            )
        heads = (top_ids, top_lp, tail_lp, entropy, rounding)
        targets = self._targets(label_ids, heads, kd_mask, ce_mask, kd_weight, ce_weight, draws)
        if self.logit_scale != 1:
            hidden = hidden * self.logit_scale
        settings = self._sized(hidden)
        arguments = (hidden, self.weight, self.bias, targets, settings, torch.is_grad_enabled())
        loss, values = _SparseKD.apply(*arguments)  # type: ignore[no-untyped-call]
        return loss, _sums(values, kd_mask, ce_mask, per_position)

    def _sized(self, hidden: Tensor) -> Settings:
        """Chunk and pass for the device of ``hidden``."""
        row_pass = self.row_pass or row_pass_for(hidden.device)
        width = row_pass.buffer_dtype(hidden.dtype).itemsize
        on_cpu = hidden.device.type == "cpu"
        chunk = self.chunk_positions or chunk_positions(self.settings.vocab, None if on_cpu else width)
        return replace(self.settings, chunk_positions=chunk, row_pass=row_pass)

    def _targets(
        self,
        label_ids: Tensor,
        heads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        kd_mask: Tensor,
        ce_mask: Tensor,
        kd_weight: float | Tensor,
        ce_weight: float | Tensor,
        draws: int,
    ) -> Targets:
        compute = torch.promote_types(self.weight.dtype, torch.float32)
        top_ids, top_lp, tail_lp, entropy, rounding = heads
        if top_ids is None or top_lp is None or tail_lp is None:
            if isinstance(kd_weight, Tensor) or kd_weight != 0:
                raise SettingsError(
                    "objective: KD needs the teacher's head, which these targets lack (profile Label holds the label's "
                    "logprob alone); capture with profile Exact, or set objective.alpha to 0"
                )
            top_ids = label_ids.new_empty(len(label_ids), 0)
            top_lp, tail_lp = top_ids.to(compute), label_ids.new_zeros(len(label_ids), dtype=compute)
            kd_mask, entropy, rounding, draws = torch.zeros_like(kd_mask), None, None, 0
        _refuse_foreign_ids(label_ids, top_ids, self.settings.vocab)
        return Targets(
            label_ids=label_ids,
            top_ids=top_ids,
            top_lp=top_lp.to(compute),
            tail_lp=tail_lp.to(compute),
            kd_scale=_per_position(kd_weight, kd_mask, compute),
            ce_scale=_per_position(ce_weight, ce_mask, compute),
            kd_mask=kd_mask,
            rounding=None if rounding is None or not self.settings.first_order else rounding.to(compute),
            entropy=None if entropy is None else entropy.to(compute),
            draws=draws,
        )


class _SparseKD(torch.autograd.Function):
    """Value and gradient in one pass: backward only scales what forward formed, in place, so it runs once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Targets,
        settings: Settings,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        compute = torch.promote_types(weight.dtype, torch.float32)
        wanted = [grad_enabled and need for need in ctx.needs_input_grad[:3]]
        gradients = Gradients(
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=compute) if wanted[1] else None,
            torch.zeros_like(bias, dtype=compute) if wanted[2] and bias is not None else None,
        )
        values = walk(hidden, weight, bias, targets, settings, gradients)
        kd = torch.where(targets.kd_mask, targets.kd_scale, 0) * values[:, STATS.index("kd")]
        ce = targets.ce_scale * values[:, STATS.index("ce")]
        loss = (kd.double().sum() + ce.double().sum()).to(compute)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.gradients = (gradients.hidden, gradients.weight, gradients.bias)
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_values: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("this loss was backpropagated before: its gradients are used up; call forward again")
        scaled = [
            None if gradient is None else gradient.mul_(grad_loss).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*scaled, None, None, None)


def _parameters(lm_head: nn.Module | nn.Parameter) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias of an output head; SettingsError for one that is adapted or quantised."""
    weight: Any
    bias: Any
    if isinstance(lm_head, nn.Parameter):
        weight, bias = lm_head, None
    elif hasattr(lm_head, "base_layer"):
        raise SettingsError(
            "train.lora: an adapter on the output head is not supported; take lm_head out of its modules"
        )
    else:
        weight, bias = getattr(lm_head, "weight", None), getattr(lm_head, "bias", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        kind = (
            type(lm_head).__name__ if not isinstance(weight, Tensor) else f"{type(lm_head).__name__} of {weight.dtype}"
        )
        raise SettingsError(f"student: the output head is {kind}, which is not supported; leave lm_head unquantised")
    return weight, bias


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise SettingsError(f"objective.temperature: {temperature} is not positive; use 1.0")
    return temperature


def _refuse_foreign_ids(label_ids: Tensor, top_ids: Tensor, vocab: int) -> None:
    """On a CPU only: an accelerator would have to be waited for, and the reader checks ids when it opens a shard."""
    if label_ids.device.type != "cpu" or not len(label_ids):
        return
    largest = max(int(label_ids.max()), int(top_ids.max()) if top_ids.numel() else 0)
    if largest >= vocab:
        raise SettingsError(
            f"student: token id {largest} is outside the vocabulary of {vocab}; use the teacher's tokenizer"
        )


def _per_position(weight: float | Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        return torch.where(mask, weight.to(dtype), 0)
    return torch.zeros(len(mask), dtype=dtype, device=mask.device).masked_fill_(mask, weight)


def _sums(values: Tensor, kd_mask: Tensor, ce_mask: Tensor, per_position: bool) -> LossSums:
    columns = dict(zip(STATS, values.detach().unbind(1), strict=True))

    def total(name: str, mask: Tensor) -> Tensor:
        return torch.where(mask, columns[name], 0).sum(dtype=torch.float64)

    either = kd_mask | ce_mask
    stats = {name: total(name, either if name == "student_entropy" else kd_mask) for name in STATS[2:]}
    return LossSums(
        kd=total("kd", kd_mask),
        ce=total("ce", ce_mask),
        ce_alone=total("ce", ce_mask & ~kd_mask),
        kd_count=kd_mask.sum(),
        ce_count=ce_mask.sum(),
        stats=stats | {"positions": either.sum()},
        positions=columns if per_position else None,
    )
