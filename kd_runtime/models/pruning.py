"""Leaving out whole decoder layers: which ones change their input least, and a model without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_runtime.api.failures import SettingsError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

INDEXED = (
    "mlp_only_layers",
    "first_k_dense_replace",
    "decoder_sparse_step",
    "num_kv_shared_layers",
    "hidden_size_per_layer_input",
)
"""Settings of architectures whose layers differ by their number, so that one cannot be taken out without changing others."""


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The list of decoder layers of a causal language model, whatever its architecture calls it.

    Raises:
        SettingsError: the architecture has no such list, or more than one.
    """
    import torch

    wanted = _text_config(model).num_hidden_layers
    decoder = model.get_decoder()
    found = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList) and len(m) == wanted]
    if len(found) != 1:
        raise SettingsError(
            f"{type(model).__name__}: has {len(found)} lists of {wanted} decoder layers where one is expected; "
            "it cannot be pruned by layers, so name a student of another architecture"
        )
    return found[0]


def block_influence(
    model: PreTrainedModel, rows: Iterable[Sequence[int]], heard: Callable[[int], None] = lambda tokens: None
) -> list[float]:
    """How much each layer changes what passes through it: 1 - cosine of its input and output, mean over tokens.

    ShortGPT (Men et al. 2024, arXiv:2403.03853, equation 1). Rows go through the model one by one, so that padding and
    neighbours cannot change the result.

    Args:
        model: on any device, in evaluation mode.
        rows: token ids.
        heard: called with the number of tokens after each row.

    Raises:
        SettingsError: there is no row, or the model's values are not finite.
    """
    import torch

    tokens = 0
    with torch.inference_mode(), _watched(decoder_layers(model)) as sums:
        for row in rows:
            ids = torch.as_tensor(np.asarray(row, dtype=np.int64), device=model.device)[None]
            model.get_decoder()(input_ids=ids, use_cache=False)
            tokens += ids.shape[1]
            heard(tokens)
    if not tokens:
        raise SettingsError("prune.by: BlockInfluence has no calibration rows to measure on; use Uniform or give rows")
    influence = [total / tokens for total in sums]
    if not np.all(np.isfinite(influence)):
        raise SettingsError("prune.by: the student's layers give values that are not finite; check its weights")
    return influence


@contextmanager
def _watched(layers: torch.nn.ModuleList) -> Iterator[list[float]]:
    """While open, each layer adds 1 - cosine of every token to its place in the list."""
    import torch

    sums = [0.0] * len(layers)

    def hook(number: int) -> Callable[..., None]:
        def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[number] += float((1 - cosine).sum())

        return add

    handles = [layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def most_influential(influence: Sequence[float], keep: int) -> list[int]:
    """The ``keep`` layers with the most influence, in the model's order; of equals, the earlier stays."""
    order = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return sorted(order[:keep])


def evenly_spaced(layers: int, keep: int) -> list[int]:
    """``keep`` of ``layers`` numbers at even distances, the first and (from two on) the last among them."""
    if keep == 1:
        return [0]
    return [round(i * (layers - 1) / (keep - 1)) for i in range(keep)]


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave only the layers ``kept`` (ascending numbers) in ``model``, and say so in its config.

    Raises:
        SettingsError: the architecture's layers depend on their number.
    """
    import torch

    config = _text_config(model)
    indexed = [name for name in INDEXED if _differs_by_layer(getattr(config, name, None))]
    if indexed:
        raise SettingsError(
            f"{type(model).__name__}: its config's {', '.join(indexed)} ties layers to their numbers, so none can be "
            "taken out; name a student of another architecture"
        )
    layers = decoder_layers(model)
    before = len(layers)
    remaining = torch.nn.ModuleList(layers[i] for i in kept)
    _replace(model.get_decoder(), layers, remaining)
    _renumber(remaining)
    for name, value in list(config.to_dict().items()):
        if "layer" in name and isinstance(value, list) and len(value) == before:
            setattr(config, name, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)
    _check_config(model)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


def _differs_by_layer(value: Any) -> bool:
    return bool(value) and value != 1


def _replace(parent: torch.nn.Module, old: torch.nn.ModuleList, new: torch.nn.ModuleList) -> None:
    name = next(name for name, child in parent.named_children() if child is old)
    setattr(parent, name, new)


def _renumber(layers: torch.nn.ModuleList) -> None:
    """Attention finds its place in the key-value cache by its layer's number."""
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]


def _check_config(model: PreTrainedModel) -> None:
    """What the config describes must have just the weights that the model has."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(model.config)
    shapes = {name: tensor.shape for name, tensor in described.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in model.state_dict().items()}:
        raise SettingsError(
            f"{type(model).__name__}: without some of its layers its config describes another model; "
            "name a student of another architecture"
        )
