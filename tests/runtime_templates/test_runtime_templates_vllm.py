"""The ids that a Template gives are those that a real vLLM server makes of the same messages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from chat_templates import model_with, template_text

from kd_runtime.api.dataset import LossOn
from kd_runtime.models.templates import Template

pytestmark = pytest.mark.runtime

FAMILIES = ("llama3", "qwen3", "gemma3")
START_SECONDS = 300
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What colour is the sky?"}, {"role": "assistant", "content": "The sky is blue."}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is ice hot or cold?"},
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": "And fire?"},
        {"role": "assistant", "content": "Hot."},
    ],
    [
        {"role": "user", "content": "  Spaces around,\n\nblank lines, 漢字, emoji 🐝 and naïve accents.  \n"},
        {"role": "assistant", "content": "\n def f(x):\n\treturn x  # <b>kept</b>\n\n"},
    ],
    [
        {"role": "user", "content": "Text that looks like a marker: <|im_end|> or <start_of_turn> or </think>."},
        {"role": "assistant", "content": "It is tokenised as one."},
    ],
)


@pytest.fixture(scope="module")
def model(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with("llama3", tiny_models / "teacher", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a vLLM server that takes a request's own chat template."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *_flags(port)],
            env=os.environ | _environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _wait(client, process, log)
            yield client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with suppress(ProcessLookupError):  # its engine may outlive it
            os.killpg(process.pid, signal.SIGKILL)


def _flags(port: int) -> list[str]:
    return (
        f"--host 127.0.0.1 --port {port} --served-model-name tiny --dtype float32 --max-model-len 512 "
        "--max-num-seqs 4 --enforce-eager --trust-request-chat-template"
    ).split()


def _environment() -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if client.get("/health").status_code == 200:
                return
        time.sleep(0.5)
    pytest.fail(f"vLLM did not start:\n{log.read_text(errors='replace')[-4000:]}")


def tokenized(client: httpx.Client, name: str, messages: Any, *, generation_prompt: bool) -> list[int]:
    """What the server's /tokenize makes of ``messages`` with template ``name``."""
    response = client.post(
        "/tokenize",
        json={
            "model": "tiny",
            "messages": messages,
            "add_generation_prompt": generation_prompt,
            "chat_template": template_text(name),
        },
    )
    assert response.status_code == 200, response.text
    return list(response.json()["tokens"])


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_have_the_ids_that_the_server_sees(server: httpx.Client, model: Path, name: str) -> None:
    template = Template(model, template_text(name))
    for messages in CONVERSATIONS:
        expected = tokenized(server, name, messages[:-1], generation_prompt=True)
        assert template.prompt(messages[:-1]).ids.tolist() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_have_the_ids_that_the_server_sees(server: httpx.Client, model: Path, name: str) -> None:
    template = Template(model, template_text(name))
    for messages in CONVERSATIONS:
        expected = tokenized(server, name, messages, generation_prompt=False)
        assert template.conversation(messages, LossOn.Response).ids.tolist() == expected
        assert template.conversation(messages, LossOn.All).ids.tolist() == expected


def test_the_folders_own_template_is_the_servers_default(server: httpx.Client, model: Path) -> None:
    messages = CONVERSATIONS[1][:-1]
    response = server.post("/tokenize", json={"model": "tiny", "messages": messages})
    assert Template(model).prompt(messages).ids.tolist() == response.json()["tokens"]
