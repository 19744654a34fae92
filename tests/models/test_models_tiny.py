"""The tiny models that other tests stand on."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest


def test_every_file_is_readable_by_another_user(tiny_models: Path) -> None:
    files = [path for path in tiny_models.rglob("*") if path.is_file()]
    assert len(files) >= 12
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


@pytest.mark.runtime
def test_the_teacher_answers_and_ends(tiny_models: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_models / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "teacher")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What colour is the sky?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0][prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The sky is blue.<|im_end|>"
