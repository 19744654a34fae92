"""The student in training: a Hugging Face causal language model, its backbone run once, and the loss that owns its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import LoRA, Objective, Precision, Train
from kd_runtime.losses.chunked import STATS
from kd_runtime.losses.divergences import Parameters
from kd_runtime.losses.head import LossSums, SparseKDHead
from kd_runtime.models.loading import load_causal_lm
from kd_runtime.models.logit_rules import CHECKED_TOKENS, LogitRules, check_logits
from kd_runtime.training import attention
from kd_runtime.training.batches import MicroBatch

SUMS = ("kd", "kd_weighted", "ce", "ce_alone", "kd_count", "ce_count", "positions", *STATS[2:])
"""What a micro-batch's forward pass returns sums of, in this order."""

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


class Student(nn.Module):
    """A causal language model and its loss; what DeepSpeed's engine wraps."""

    def __init__(self, model: Any, head: SparseKDHead):
        super().__init__()
        self.model = model
        self.head = head
        self.draws = 0
        """How many entries of the targets' heads are draws from the tail (profile Unbiased)."""
        self.own_attention = False
        """True where packed rows go through `rows_attention`."""

    @property
    def language_model(self) -> Any:
        """The causal language model itself, adapters' wrapper taken off."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def backbone(self) -> Any:
        """All but the output head."""
        return self.language_model.base_model

    def forward(
        self, batch: MicroBatch, kd_weight: float, ce_weight: float, ce_alone_weight: float
    ) -> tuple[Tensor, Tensor]:
        """The loss of one micro-batch, and `SUMS` of it [len(SUMS)] float64.

        ``ce_alone_weight`` is cross-entropy's at positions without a teacher's distribution.
        """
        weights = batch.kd_weights
        ce_weights = torch.full_like(batch.kd_mask, ce_alone_weight, dtype=torch.float64)
        loss, sums = self.head(
            self.hidden(batch),
            batch.label_ids,
            batch.top_ids,
            batch.top_lp,
            batch.tail_lp,
            batch.kd_mask,
            batch.ce_mask,
            kd_weight=kd_weight if weights is None else kd_weight * weights,
            ce_weight=ce_weights.masked_fill_(batch.kd_mask, ce_weight),
            per_position=weights is not None,
            rounding=batch.rounding,
            entropy=batch.entropy if self.draws else None,
            draws=self.draws,
        )
        return loss, stacked(sums, weights)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Hidden states [P, H] that the batch's targets pair with."""
        extra = {"row_lengths": batch.row_lengths} if self.own_attention and batch.attention_mask is None else {}
        states: Tensor = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            **extra,
        ).last_hidden_state
        return states.reshape(-1, states.shape[-1]).index_select(0, batch.sources)

    def check_packing(self, device: torch.device) -> None:
        """SettingsError where packed rows see each other; a few tokens are run to know."""
        extra: dict[str, Any] = {"row_lengths": ()} if self.own_attention else {}
        attention.check_isolation(self.backbone, extra, self.head.settings.vocab, device)

    def check_logits(self, device: torch.device) -> None:
        """SettingsError where the model's own logits are not those that the loss is computed on."""
        extra = {"row_lengths": (CHECKED_TOKENS,)} if self.own_attention else {}
        check_logits(self.language_model, self.head.settings.vocab, device, "spec.student.model", **extra)


def stacked(sums: LossSums, weights: Tensor | None) -> Tensor:
    """`SUMS` of a `LossSums`, as one tensor; ``weights`` [P] are those of the positions' divergences."""
    weighted = sums.kd
    if weights is not None and sums.positions is not None:
        weighted = torch.where(weights > 0, weights * sums.positions["kd"], 0).sum(dtype=torch.float64)
    named = {
        "kd": sums.kd,
        "kd_weighted": weighted,
        "ce": sums.ce,
        "ce_alone": sums.ce_alone,
        "kd_count": sums.kd_count,
        "ce_count": sums.ce_count,
    }
    named |= sums.stats
    return torch.stack([named[name].double() for name in SUMS])


def build_student(folder: Path, train: Train, vocabulary: int, *, trust_remote_code: bool = False) -> Student:
    """Load the model in ``folder`` and put the loss on it; ``vocabulary`` is the tokenizer's true size.

    Raises:
        SettingsError: the model does not fit the settings, or its vocabulary the tokenizer's.
    """
    model = load_causal_lm(folder, DTYPES[train.precision], trust_remote_code=trust_remote_code)
    rows = vocabulary_rows(model)
    if rows < vocabulary:
        raise SettingsError(
            f"student.model: its output head has {rows} tokens, the tokenizer {vocabulary}; use its own"
        )
    model.config.use_cache = False
    own_attention = train.packing and attention.suits(model, train.max_length)
    if own_attention:
        attention.register()
        model.set_attn_implementation(attention.ROWS_ATTENTION)
    head_layer = model.get_output_embeddings()
    wrapped = with_lora(model, train.lora, train.seed) if train.lora else model
    if train.gradient_checkpointing:
        _checkpoint_activations(model, train)
    rules = LogitRules.of(model.config)
    head = SparseKDHead(
        head_layer,
        vocab=vocabulary,
        divergence=train.objective.divergence.value,
        parameters=parameters_of(train.objective),
        temperature=train.objective.temperature,
        logit_scale=rules.scale,
        softcap=rules.softcap,
    )
    student = Student(wrapped, head)
    student.own_attention = own_attention
    return student.train()


def parameters_of(objective: Objective) -> Parameters:
    """The divergence's parameters."""
    given = objective
    return Parameters(beta=given.beta, skew=given.skew, a=given.a, b=given.b, mass=given.mass, function=given.function)


def vocabulary_rows(model: Any) -> int:
    """Rows of the output head's weight, wherever ZeRO-3 keeps it."""
    weight = model.get_output_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def with_lora(model: Any, lora: LoRA, seed: int) -> Any:
    """The model with low-rank additions in its backbone, drawn from ``seed``; all else frozen.

    Raises:
        SettingsError: a target module is the output head, or no layer has that name.
    """
    from peft import LoraConfig, get_peft_model

    targets = list(lora.target_modules)
    head_name = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    if any(head_name.endswith(target) for target in targets):
        raise SettingsError(f"train.lora.targetModules: {head_name} is the output head; take it out")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets or "all-linear",
        exclude_modules=[head_name],
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise SettingsError(f"train.lora.targetModules: {', '.join(targets) or 'all-linear'}: {error}") from error


def _checkpoint_activations(model: Any, train: Train) -> None:
    # ZeRO-3 releases parameters between the two passes, which the non-reentrant kind takes for changed shapes.
    reentrant = train.deepspeed.zero_stage == 3
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant and train.lora:
        model.enable_input_require_grads()
