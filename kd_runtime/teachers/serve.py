"""`kd teacher serve`: one teacher behind HTTP, with either engine, until it is told to stop or its parent is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from kd_runtime.api.failures import ExitClass, SettingsError, TeacherError
from kd_runtime.api.teacher import Engine, Parallelism, Quantization, Serving
from kd_runtime.planning.tokenizers import tokenizer_digest
from kd_runtime.teachers.guard import Identity
from kd_runtime.teachers.leash import POLL_SECONDS, Leash, when_orphaned

STOP_SECONDS = 8.0
"""Between SIGTERM and SIGKILL of a teacher: it holds nothing that could be lost."""


@dataclass(frozen=True)
class ServeOptions:
    """Everything that a teacher server is told."""

    model_dir: Path
    engine: Engine
    host: str = "127.0.0.1"
    port: int = 8000
    """0: a free one; ``ready_file`` says which."""
    api_key: str | None = None
    """Wanted from every request but /health. None: no key is wanted."""
    served_name: str = "teacher"
    dtype: str = "bfloat16"
    quantization: Quantization | None = None
    max_model_len: int | None = None
    max_logprobs: int = 256
    trust_remote_code: bool = False
    serving: Serving = field(default_factory=Serving)
    """How vLLM uses its machine."""
    parallelism: Parallelism = field(default_factory=Parallelism)
    extra_args: tuple[str, ...] = ()
    """More vLLM flags, from the runtime."""
    extra_env: Mapping[str, str] = field(default_factory=dict)
    teacher_key: str | None = None
    """Which teacher this is: a score request that names another is answered 409."""
    tokenizer: str | None = None
    """Digest of its tokenizer, of which the same is true; `serve` takes it from the model's folder."""
    ready_file: Path | None = None
    """Gets {"url", "pid"} as JSON once /health is 200."""
    leashed: bool = True
    """End when the parent process ends."""


def serve(options: ServeOptions) -> ExitClass:
    """Serve until SIGTERM or SIGINT (Done), or until the parent is gone (Killed).

    Raises:
        SettingsError: the port is taken, or the model cannot be loaded (Transformers engine).
        TeacherError: vLLM ended by itself.
    """
    orphaned = _watch_parent() if options.leashed else threading.Event()
    with _bound(options.host, options.port) as probe:  # a port that is taken is said before a model is loaded
        port = int(probe.getsockname()[1])
    options = replace(options, port=port, tokenizer=_tokenizer(options.model_dir))
    if options.ready_file is not None:
        options.ready_file.unlink(missing_ok=True)
        threading.Thread(target=_announce, args=(options, options.ready_file), name="announce", daemon=True).start()
    if options.engine is Engine.VLLM:
        _serve_vllm(options)
    else:
        _serve_transformers(options)
    return ExitClass.Killed if orphaned.is_set() else ExitClass.Done


def _tokenizer(model_dir: Path) -> str | None:
    """The digest of a model's tokenizer; None of one that has no digest: it may answer questions, and scores no ids."""
    try:
        return tokenizer_digest(model_dir)
    except SettingsError:
        return None


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address. SettingsError where it is taken."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise SettingsError(
            f"--port {port}: cannot listen on {host}:{port} ({error.strerror}); choose another"
        ) from error
    return bound


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server bound to ``host``."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _watch_parent() -> threading.Event:
    """Once the parent is gone: an event, SIGTERM to ourselves, and after a while the end in any case."""
    orphaned = threading.Event()

    def end() -> None:
        orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS + 2)
        os._exit(int(ExitClass.Killed))

    when_orphaned(end)
    return orphaned


def _ended_by_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set from now on."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _serve_vllm(options: ServeOptions) -> None:
    from kd_runtime.teachers.vllm_command import command, environment, on_cpu

    ended = _ended_by_signals()
    leash = Leash(command(options, cpu=on_cpu()), environment(options, os.environ, cpu=on_cpu()))
    code = None
    while code is None and not ended.wait(POLL_SECONDS):
        code = leash.poll()
    leash.stop(STOP_SECONDS)
    if not ended.is_set():
        assert code is not None
        raise TeacherError(
            f"vLLM ended by itself with {_ending(code)}; its log says why "
            f"(model {options.model_dir}, dtype {options.dtype}, maxModelLen {options.max_model_len})"
        )


def _serve_transformers(options: ServeOptions) -> None:
    import uvicorn

    from kd_runtime.teachers.transformers_app import TransformersApp
    from kd_runtime.teachers.transformers_engine import TransformersEngine

    engine = TransformersEngine.load(
        options.model_dir, options.dtype, options.max_model_len, trust_remote_code=options.trust_remote_code
    )
    app = TransformersApp(engine, options.served_name, Identity(options.teacher_key, options.tokenizer))
    app.warm_up()
    config = uvicorn.Config(
        app.asgi(options.api_key),
        log_level="warning",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=60,
    )
    _ended_by_signals()  # uvicorn takes signals while it serves, and hands them on afterwards
    with _bound(options.host, options.port) as listening:
        uvicorn.Server(config).run(sockets=[listening])


def _announce(options: ServeOptions, ready_file: Path) -> None:
    """Write the ready file once the server answers."""
    url = local_url(options.host, options.port)
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while not _healthy(client, url):
            time.sleep(POLL_SECONDS)
    part = ready_file.with_name(ready_file.name + ".part")
    part.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    part.replace(ready_file)


def _healthy(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
