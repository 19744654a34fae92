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

from kd_runtime.api.failures import ExitClass, TeacherError
from kd_runtime.api.teacher import Engine, Parallelism, Quantization, Serving
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
    ready_file: Path | None = None
    """Gets {"url", "pid"} as JSON once /health is 200."""
    leashed: bool = True
    """End when the parent process ends."""


def serve(options: ServeOptions) -> ExitClass:
    """Serve until SIGTERM or SIGINT (Done), or until the parent is gone (Killed).

    Raises:
        SettingsError: the model cannot be loaded (Transformers engine).
        TeacherError: vLLM ended by itself.
    """
    options = options if options.port else replace(options, port=free_port(options.host))
    if options.ready_file is not None:
        options.ready_file.unlink(missing_ok=True)
        threading.Thread(target=_announce, args=(options, options.ready_file), name="announce", daemon=True).start()
    if options.engine is Engine.VLLM:
        return _serve_vllm(options)
    return _serve_transformers(options)


def free_port(host: str) -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server bound to ``host``."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _serve_vllm(options: ServeOptions) -> ExitClass:
    from kd_runtime.teachers.vllm_command import command, environment, on_cpu

    ended = threading.Event()
    orphaned = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if options.leashed:
        when_orphaned(orphaned.set)
    leash = Leash(command(options, cpu=on_cpu()), environment(options, os.environ, cpu=on_cpu()))
    code = None
    while code is None and not orphaned.is_set() and not ended.wait(POLL_SECONDS):
        code = leash.poll()
    last = leash.stop(STOP_SECONDS)
    if orphaned.is_set():
        return ExitClass.Killed
    if ended.is_set():
        return ExitClass.Done
    raise TeacherError(
        f"vLLM ended by itself with {_ending(last if code is None else code)}; its log says why "
        f"(model {options.model_dir}, dtype {options.dtype}, maxModelLen {options.max_model_len})"
    )


def _serve_transformers(options: ServeOptions) -> ExitClass:
    import uvicorn

    from kd_runtime.teachers.transformers_app import TransformersApp
    from kd_runtime.teachers.transformers_engine import TransformersEngine

    engine = TransformersEngine.load(
        options.model_dir, options.dtype, options.max_model_len, trust_remote_code=options.trust_remote_code
    )
    app = TransformersApp(engine, options.served_name, options.teacher_key)
    app.warm_up()
    config = uvicorn.Config(
        app.asgi(options.api_key),
        host=options.host,
        port=options.port,
        log_level="warning",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=60,
    )
    server = uvicorn.Server(config)
    orphaned = threading.Event()

    def stop() -> None:
        orphaned.set()
        server.should_exit = True

    if options.leashed:
        when_orphaned(stop)
    server.run()
    if not server.started:
        raise TeacherError(f"cannot listen on {options.host}:{options.port}; choose another --port")
    return ExitClass.Killed if orphaned.is_set() else ExitClass.Done


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
