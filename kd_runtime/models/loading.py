"""Loading and saving Hugging Face causal language models and their tokenizers, from local directories alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_runtime.api.failures import SettingsError
from kd_runtime.planning.sources import ADAPTER, ADAPTER_REFUSED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files beside weights and config that say how a model is spoken to: they go where it goes, byte for byte."""

FILE_MODE = 0o644
"""save_pretrained leaves weights readable by their owner alone, which a pod of another user then cannot read."""


def load_causal_lm(
    folder: Path, dtype: torch.dtype | str = "auto", *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of ``folder``, on the CPU, in evaluation mode.

    Args:
        folder: a directory with config.json and safetensors.
        dtype: a torch dtype, its name, or `auto` for the one that the model was saved in.
        trust_remote_code: run Python that lies beside the weights.

    Raises:
        SettingsError: the directory holds no model that transformers can load, or an adapter beside it.
    """
    from transformers import AutoModelForCausalLM

    if (folder / ADAPTER).exists():
        raise SettingsError(f"{folder}: {ADAPTER_REFUSED}")
    _without_bars()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"{folder}: holds no model that transformers loads ({_first_line(error)})") from error
    return model.eval()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder``.

    Raises:
        SettingsError: the directory holds none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"{folder}: holds no tokenizer that transformers loads ({_first_line(error)})") from error


def save_causal_lm(model: PreTrainedModel, folder: Path, *, companions: Path) -> None:
    """Write ``model`` to ``folder`` as safetensors with its config, and copy tokenizer, template and generation config.

    Args:
        model: its config says which dtype and shape it has.
        folder: made where it is absent.
        companions: the directory that tokenizer, chat template, generation config and any code are copied from.
    """
    from transformers import GenerationConfig

    _without_bars()
    folder.mkdir(parents=True, exist_ok=True)
    own: Any = model.generation_config
    model.generation_config = GenerationConfig()  # transformers refuses to save some that models are published with
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = own
    (folder / "generation_config.json").unlink(missing_ok=True)
    copy_companions(companions, folder)
    if not (folder / "generation_config.json").exists() and own is not None:
        own.save_pretrained(folder)
    set_file_modes(folder)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what ``source`` has of COMPANIONS, and Python files, to ``target``."""
    for path in [*(source / name for name in COMPANIONS), *sorted(source.glob("*.py"))]:
        if path.exists():
            shutil.copyfile(path, target / path.name)


def _without_bars() -> None:
    """Progress bars of loading and saving make a log unreadable."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def set_file_modes(folder: Path) -> None:
    """Give every file of ``folder`` mode FILE_MODE."""
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(FILE_MODE)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
