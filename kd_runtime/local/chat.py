"""`kd chat`: teacher, untrained and trained student answer the same question side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import read_manifest
from kd_runtime.artifacts.store import Store
from kd_runtime.local.run import open_run
from kd_runtime.models.loading import load_causal_lm, load_tokenizer
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.fetch import fetch_external
from kd_runtime.planning.plan import Plan, PlannedStage, StageType

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLOURS = {"teacher": "cyan", "untrained": "yellow", "trained": "green"}


@dataclass
class Voice:
    """One of the models that answer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def answer(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        """A greedy answer of at most ``max_tokens`` tokens."""
        import torch

        encoded: Any = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out: Any = self.model.generate(
                **encoded, max_new_tokens=max_tokens, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
            )
        return str(self.tokenizer.decode(out[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))


def chat(run: Path, prompts: list[str], max_tokens: int, console: Console) -> None:
    """Answer ``prompts``, or without any, what is typed, until an empty line or end of input.

    Raises:
        SettingsError: the run has trained no student yet.
    """
    plan, store, cache = open_run(run)
    voices = list(load_voices(plan, store, Cache(cache)))
    histories: dict[str, list[dict[str, str]]] = {voice.name: [] for voice in voices}
    for question in prompts or _typed(console):
        panels = []
        for voice in voices:
            history = histories[voice.name]
            history.append({"role": "user", "content": question})
            text = voice.answer(history, max_tokens)
            history.append({"role": "assistant", "content": text})
            panels.append(
                Panel(
                    Text(text),
                    title=voice.name,
                    border_style=COLOURS[voice.name],
                    width=max(30, console.width // len(voices) - 1),
                )
            )
            if prompts:
                history.clear()
        if prompts:
            console.print(Text(question, style="bold"))
        console.print(Columns(panels))


def load_voices(plan: Plan, store: Store, cache: Cache) -> Iterator[Voice]:
    """The teacher (where it is hosted), the student before and after training."""
    trained = [stage for stage in plan.stages if stage.type is StageType.Train and read_manifest(store, stage.key)]
    if not trained:
        raise SettingsError(f"{plan.job}: has trained no student yet; run it first")
    memory = DigestMemory(store)
    teacher = next((s.externals["teacher"] for s in plan.stages if "teacher" in s.externals), None)
    if teacher is not None and teacher.files:
        yield _voice("teacher", fetch_external(teacher, cache, memory))
    yield _voice("untrained", _model_dir(plan, trained[-1], store, cache, memory))
    yield _voice("trained", _artifact_dir(trained[-1], store, cache))


def _model_dir(plan: Plan, stage: PlannedStage, store: Store, cache: Cache, memory: DigestMemory) -> Path:
    if "model" in stage.inputs:
        return _artifact_dir(plan.stage(stage.inputs["model"]), store, cache)
    return fetch_external(stage.externals["model"], cache, memory)


def _artifact_dir(stage: PlannedStage, store: Store, cache: Cache) -> Path:
    manifest = read_manifest(store, stage.key)
    if manifest is None:
        raise SettingsError(f"stage {stage.name}: its artifact is gone; run the job again")
    return cache.directory(store, manifest, "model/")


def _voice(name: str, folder: Path) -> Voice:
    return Voice(name, load_causal_lm(folder), load_tokenizer(folder))


def _typed(console: Console) -> Iterator[str]:
    console.print("Type a question; an empty line ends.", style="dim")
    while True:
        try:
            line = console.input(Text("> ", style="bold")).strip()
        except EOFError:
            return
        if not line:
            return
        yield line
