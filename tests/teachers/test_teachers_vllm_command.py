"""vLLM is started so that it answers what was asked and nothing slips in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.teacher import Engine, Parallelism, Quantization, Serving
from kd_runtime.teachers.serve import ServeOptions
from kd_runtime.teachers.vllm_command import command, environment


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    return tmp_path


def flags(options: ServeOptions, *, cpu: bool = True) -> dict[str, str]:
    """Flag -> value ('' for a switch); of a repeated flag the last, as vLLM reads it."""
    words = command(options, cpu=cpu)[3:]
    values = [*words[1:], "--"]
    return {w[2:]: "" if v.startswith("--") else v for w, v in zip(words, values, strict=True) if w.startswith("--")}


def test_a_models_own_sampling_defaults_do_not_slip_in(model: Path) -> None:
    assert flags(ServeOptions(model, Engine.VLLM))["generation-config"] == "vllm"


def test_the_runtimes_flags_cannot_undo_what_is_decided(model: Path) -> None:
    options = ServeOptions(model, Engine.VLLM, dtype="float32", extra_args=("--dtype", "auto", "--swap-space", "2"))
    assert (flags(options)["dtype"], flags(options)["swap-space"]) == ("float32", "2")


def test_logprobs_and_length_are_as_wide_as_asked(model: Path) -> None:
    said = flags(ServeOptions(model, Engine.VLLM, max_logprobs=200, max_model_len=300))
    assert (said["max-logprobs"], said["max-model-len"]) == ("200", "300")


def test_on_a_cpu_no_prefill_is_cut_in_chunks(model: Path) -> None:
    said = flags(ServeOptions(model, Engine.VLLM, serving=Serving(max_num_batched_tokens=2048)))
    assert "no-enable-chunked-prefill" in said and said["max-num-batched-tokens"] == "4096"


def test_on_a_gpu_prefill_is_cut_as_the_settings_say(model: Path) -> None:
    said = flags(ServeOptions(model, Engine.VLLM, serving=Serving(max_num_batched_tokens=2048)), cpu=False)
    assert "no-enable-chunked-prefill" not in said and said["max-num-batched-tokens"] == "2048"
    assert "distributed-executor-backend" not in said


def test_parallelism_and_quantisation_are_named_as_vllm_does(model: Path) -> None:
    options = ServeOptions(
        model,
        Engine.VLLM,
        quantization=Quantization.CompressedTensors,
        parallelism=Parallelism(tensor=4, pipeline=2),
    )
    said = flags(options, cpu=False)
    assert said["quantization"] == "compressed-tensors"
    assert (said["tensor-parallel-size"], said["pipeline-parallel-size"]) == ("4", "2")


def test_secrets_are_not_on_the_command_line(model: Path) -> None:
    options = ServeOptions(model, Engine.VLLM, api_key="sesame", teacher_key="a" * 64)
    env = environment(options, {"VLLM_API_KEY": "old"}, cpu=True)
    assert "sesame" not in " ".join(command(options, cpu=True))
    assert env["KD_TEACHER_KEY"] == "sesame" and "VLLM_API_KEY" not in env


def test_the_server_is_told_which_teacher_and_tokenizer_it_has(model: Path) -> None:
    options = ServeOptions(model, Engine.VLLM, teacher_key="a" * 64, tokenizer="c" * 64)
    env = environment(options, {}, cpu=False)
    assert (env["KD_TEACHER_IDENTITY"], env["KD_TEACHER_TOKENIZER"]) == ("a" * 64, "c" * 64)
    assert "KD_TEACHER_TOKENIZER" not in environment(ServeOptions(model, Engine.VLLM), env, cpu=False)


def test_a_key_of_the_environment_is_not_inherited(model: Path) -> None:
    assert "KD_TEACHER_KEY" not in environment(ServeOptions(model, Engine.VLLM), {"KD_TEACHER_KEY": "x"}, cpu=True)


def test_vllm_looks_nothing_up_and_reports_nothing(model: Path) -> None:
    env = environment(ServeOptions(model, Engine.VLLM), {}, cpu=False)
    assert env["HF_HUB_OFFLINE"] == env["VLLM_NO_USAGE_STATS"] == "1"


def test_the_runtimes_environment_is_taken(model: Path) -> None:
    options = ServeOptions(model, Engine.VLLM, extra_env={"VLLM_CPU_KVCACHE_SPACE": "8"})
    assert environment(options, {}, cpu=True)["VLLM_CPU_KVCACHE_SPACE"] == "8"


def test_a_model_that_says_no_length_needs_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="maxModelLen"):
        command(ServeOptions(tmp_path, Engine.VLLM), cpu=True)
