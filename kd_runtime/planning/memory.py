"""What training holds in memory, term by term, before it is tried.

Checked against the peak of real ranks on CPUs (tests/training/test_training_memory.py), all but the libraries within 20 %: fp32
at every ZeRO stage, bf16 at ZeRO 1 and 2, LoRA in both precisions.
"""

from __future__ import annotations

from dataclasses import dataclass

from kd_runtime.api.job import LoRA, Precision, Train
from kd_runtime.planning.headers import ModelHeader

LIBRARIES = 575 << 20
"""A rank's interpreter with torch, transformers and DeepSpeed, as it is while a model of no size trains."""
FRAGMENTED = 0.25
"""What the allocator holds beyond what is in use, of that: 0.1 to 0.32 measured with glibc, which keeps what was freed."""
SCATTERED = 2.5
"""What the allocator holds besides with LoRA on CPUs, of the outputs of all linear layers in fp32: 2.3 to 2.9 measured. An adapted
layer frees three tensors of its output's size and keeps a small one, of the addition's rank, which is laid into the gap: the next
tensor of that size no longer fits. What is in use is half as much, and checkpointing hardly changes it."""
GAP = 2
"""The most that one such small tensor spoils, in tensors as wide as the feed-forward part: 1.4 to 2.1 measured where few layers
are adapted."""
AUTO_TOKENS = {False: 1024, True: 16_384}
"""Tokens of a forward pass that `microBatchSize: Auto` takes: on CPUs larger ones are no faster and need more memory; on
accelerators it starts there, and is halved as long as the train step does not fit."""
CPU_CHUNK = 256
"""Positions whose logits exist at once on a CPU: few rows at a time keep the loss's passes over them in its cache."""
CARD_CHUNK_BYTES = 512 << 20
"""Of logits that exist at once on an accelerator. What lies between the loss's products costs as many launches for a chunk of 256
positions as for one of 8,192, about 4 ms of the host beside an H100: with chunks of this size the card, not the host, is waited for."""
BUCKET_ELEMENTS = 50_000_000
"""Gradients that DeepSpeed reduces together at ZeRO 1 to 3."""


@dataclass(frozen=True)
class TrainMemory:
    """Bytes of one rank at its peak, by what they are."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments and, where weights are sharded or bf16, the fp32 weights that they belong to."""
    reduction: int
    """Copies of gradients on their way between ranks, which are made where there is one rank, too."""
    activations: int
    loss: int
    """One chunk of logits, and the head's gradient in fp32, which is put together chunk by chunk."""
    scattered: int = 0
    """With LoRA on CPUs, gaps between what is in use that no tensor fits into: see `SCATTERED`."""
    libraries: int = LIBRARIES

    @property
    def allocated(self) -> int:
        """All but the libraries."""
        used = self.weights + self.gradients + self.optimizer + self.reduction + self.activations + self.loss
        return round(used * (1 + FRAGMENTED)) + self.scattered

    @property
    def total(self) -> int:
        """Of the process."""
        return self.allocated + self.libraries


def chunk_positions(vocabulary: int, card_width: int | None) -> int:
    """Positions whose logits the loss holds at once, a multiple of 256; ``card_width``: bytes of a logit on an accelerator."""
    if card_width is None:
        return CPU_CHUNK
    return max(1, CARD_CHUNK_BYTES // (256 * vocabulary * card_width)) * 256


def train_memory(header: ModelHeader, train: Train, *, ranks: int, on_gpu: bool) -> TrainMemory:
    """Memory of one of ``ranks``.

    With N parameters, of which T are trained, in w bytes each, and W ranks:

    - weights: N w; at ZeRO 3 N w / W.
    - gradients: T w; at ZeRO 2 and 3 a rank's share in fp32 besides, 4 T / W.
    - optimizer: 8 T of moments without sharding; else (4 + 8) T / W.
    - reduction: at ZeRO 1 to 3 one bucket, at ZeRO 3 two; else T w once activations are gone, so what exceeds those.
    - activations of a token: see `_activations`; gaps with LoRA: see `_gaps`.
    - loss: 4 bytes a logit of one chunk (w on an accelerator); 4 H V of the head's gradient, unless the head is frozen; in bf16 a
      copy of either in w (of the logits on a CPU alone), for the products with the head, and as the gradient that is handed on.
    """
    width = 4 if train.precision is Precision.fp32 else 2
    stage = train.deepspeed.zero_stage if train.precision is Precision.fp32 else max(train.deepspeed.zero_stage, 1)
    trained = _lora_parameters(header, train.lora) if train.lora else header.parameters
    shared = ranks if stage else 1
    in_reduction = 4  # bf16 gradients are summed in fp32
    bucket = min(trained, BUCKET_ELEMENTS) * in_reduction
    tokens = _tokens(train, on_gpu)
    layer = _lora_layer(header, width, train.lora) if train.lora else _layer(header, width)
    activations = tokens * _activations(header, width, layer, checkpointed=train.gradient_checkpointing)
    chunk = chunk_positions(header.vocabulary, width if on_gpu else None) * header.vocabulary
    head = 0 if train.lora else header.head_parameters
    both = 4 if width == 4 else 4 + width
    loss = chunk * (width if on_gpu else both) + head * both
    gaps = _gaps(header, train.lora) if train.lora and not on_gpu else 0
    return TrainMemory(
        weights=header.parameters * width // (ranks if stage == 3 else 1),
        gradients=trained * in_reduction + (4 * trained // shared if stage >= 2 or width == 2 else 0),
        optimizer=(12 if stage else 8) * trained // shared,
        reduction=bucket * (1, 1, 2)[stage - 1] if stage else max(0, trained * in_reduction - activations - loss),
        activations=activations,
        loss=loss,
        scattered=round(4 * gaps * header.layers * tokens),
    )


def _tokens(train: Train, on_gpu: bool) -> int:
    """Of the largest forward pass."""
    if isinstance(train.micro_batch_size, int):
        return train.micro_batch_size * train.max_length
    return max(AUTO_TOKENS[on_gpu], train.max_length)


def _activations(header: ModelHeader, width: int, layer: int, *, checkpointed: bool) -> int:
    """Bytes that one token leaves until the backward pass, ``layer`` of them in each layer.

    With checkpointing a layer leaves its input alone, and one layer at a time is computed again. Besides: the last norm, the hidden
    states that are scored and their gradient, 6 H, and the gradients inside the layer that the backward pass is in, 3 I.
    """
    hidden, inner = header.hidden, header.intermediate
    layers = layer + header.layers * hidden * width if checkpointed else header.layers * layer
    return layers + (6 * hidden + 3 * inner) * width


def _layer(header: ModelHeader, width: int) -> int:
    """Bytes that one token leaves in a decoder's layer with a gated feed-forward part, all of it trained.

    Of each of two norms its input (the residual stream) in fp32 in any precision, its normed input and its output, 2 H; the queries,
    the attention's output before and after it is put together, 3 Q; keys and values, 2 K; of the feed-forward part the gate before
    and after its activation, the other branch and their product, 4 I.
    """
    hidden, inner = header.hidden, header.intermediate
    return 2 * hidden * 4 + (4 * hidden + 3 * header.queries + 2 * header.keys + 4 * inner) * width


def _lora_layer(header: ModelHeader, width: int, lora: LoRA) -> int:
    """The same where its weights are frozen but for additions, which are fp32 in any precision.

    A frozen norm keeps no normed input, a frozen linear layer no input. An addition keeps its input and the R numbers between its
    factors: in fp32 the input is one tensor for all layers that read it; in bf16 each addition casts a copy for itself, and with
    dropout each has one, too, and a mask of a byte an element.
    """
    hidden, inner = header.hidden, header.intermediate
    adapted = _adapted(header, lora)
    frozen = 2 * hidden * 4 + (2 * header.queries + 2 * header.keys + 3 * inner) * width
    between = 4 * lora.rank * len(adapted)
    read = sum(into for into, _ in adapted.values())
    if width == 4 and not lora.dropout:
        read = sum({READ_BY[name]: into for name, (into, _) in adapted.items()}.values())
        return frozen + between + 4 * read
    return frozen + between + (5 if lora.dropout else 4) * read


READ_BY = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attended",
    "gate_proj": "feed-forward",
    "up_proj": "feed-forward",
    "down_proj": "product",
}
"""A layer's linear layers, and which tensor each reads."""


def _adapted(header: ModelHeader, lora: LoRA) -> dict[str, tuple[int, int]]:
    """Width of input and output of each of a layer's linear layers that has an addition; of all where a name is not known."""
    hidden, inner = header.hidden, header.intermediate
    ends = {
        "q_proj": (hidden, header.queries),
        "k_proj": (hidden, header.keys),
        "v_proj": (hidden, header.keys),
        "o_proj": (header.queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    named = {target.rpartition(".")[2] for target in lora.target_modules}
    return {name: ends[name] for name in named} if named and named <= ends.keys() else ends


def _gaps(header: ModelHeader, lora: LoRA) -> float:
    """Elements in a layer, of each token, that lie in gaps."""
    outputs = 2 * header.hidden + header.queries + 2 * header.keys + 2 * header.intermediate
    return min(SCATTERED * outputs, GAP * header.intermediate * len(_adapted(header, lora)))


def _lora_parameters(header: ModelHeader, lora: LoRA) -> int:
    """Both factors of every addition."""
    return header.layers * lora.rank * sum(into + out for into, out in _adapted(header, lora).values())
