"""The operator's process: `python -m kd_operator` with flags that the chart fills in."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from kd_operator import metrics
from kd_operator.cluster.client import Cluster, connect
from kd_operator.cluster.errors import ApiError
from kd_operator.cluster.events import Events
from kd_operator.cluster.failpoints import from_environment
from kd_operator.cluster.lease import Elector
from kd_operator.decide.core import decide
from kd_operator.observe import Observer
from kd_operator.progress.board import Board
from kd_operator.progress.server import add_routes
from kd_operator.progress.silence import Silence
from kd_operator.queue import WorkQueue
from kd_operator.settings import Settings
from kd_operator.triggers import Triggers
from kd_operator.worker import Decide, Worker

KINDS_SECONDS = 2.0
"""Between two looks whether the API server knows our kinds yet."""
BEHIND_SECONDS = 300.0
"""An operator that leads and is so late with a key hangs: the kubelet starts it again."""

log = logging.getLogger("kd_operator")


def now() -> datetime:
    """The time, to the second, as the API server writes it."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class Operator:
    """All that runs in the process, and how it is begun and ended."""

    settings: Settings
    cluster: Cluster
    worker: Worker
    elector: Elector
    triggers: Triggers
    board: Board
    watching: bool = False
    silence: Silence = field(default_factory=Silence)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def build(cls, settings: Settings, decide: Decide) -> Operator:
        """Put it together; nothing runs yet."""
        cluster = await connect(answered=metrics.api_request)
        board, queue = Board(), WorkQueue[tuple[str, str]](time.monotonic)
        elector = Elector(
            cluster, settings.namespace, settings.lease_name, settings.identity, now, time.monotonic, changed=_leads
        )
        worker = Worker(
            cluster=cluster,
            observer=Observer(cluster, board),
            events=Events(cluster, settings.identity, now),
            queue=queue,
            decide=decide,
            settings=settings,
            leading=elector.leading,
            now=now,
            clock=time.monotonic,
            since=lambda: elector.since,
            failpoint=from_environment(os.environ),
        )
        triggers = Triggers(worker.job_changed, worker.child_changed, worker.runtime_changed, settings.watch_namespaces)
        return cls(settings, cluster, worker, elector, triggers, board)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set; what fails ends the process, and its pod is started again."""
        server = await self._serve()
        self.tasks = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("elector", self.elector.run()),
                ("workers", self.worker.run()),
                ("watches", self._watch()),
                ("silence", self.silence.run(server)),
                ("stop", _wait(stop)),
            )
        ]
        try:
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await asyncio.gather(self.elector.release(), self.triggers.stop())
            await server.cleanup()
            await self.cluster.close()

    async def _watch(self) -> None:
        """Begin to watch once the API server knows our kinds, then hold still."""
        while not await self._known():
            await asyncio.sleep(KINDS_SECONDS)
        self.triggers.start()
        self.watching = True
        await asyncio.Event().wait()

    async def _known(self) -> bool:
        try:
            if await self.cluster.serves("DistillationJob"):
                return True
            log.warning("the API server does not know DistillationJobs; install the chart's CRDs")
        except ApiError as error:
            log.warning("the API server does not answer: %s", error)
        return False

    async def _serve(self) -> web.AppRunner:
        app = web.Application(middlewares=[self.silence.middleware])
        app.router.add_get("/healthz", self._healthy)
        app.router.add_get("/readyz", self._ready)
        metrics.add_routes(app)
        add_routes(app, self.cluster, self.board)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, port=self.settings.port).start()
        return runner

    async def _healthy(self, request: web.Request) -> web.Response:
        due, late = self.worker.queue.next_due(), 0.0
        if due is not None and self.elector.leading.is_set():
            late = self.elector.clock() - max(due, self.elector.since)  # a standby works on nothing, so all is long due
        if late > BEHIND_SECONDS:
            return web.Response(status=503, text=f"a job waits to be looked at since {late:.0f} s\n")
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        if not self.watching:
            return web.Response(status=503, text="the API server does not know DistillationJobs yet\n")
        return web.Response(text="leading\n" if self.elector.leading.is_set() else "standing by\n")


def _leads(leads: bool) -> None:
    metrics.leading(leads)
    if not leads:
        metrics.PHASES_SEEN.clear()


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


async def operate(settings: Settings, decide: Decide) -> None:
    """Run an operator until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    operator = await Operator.build(settings, decide)
    await operator.run(stop)


def arguments(words: Sequence[str]) -> tuple[Settings, str]:
    """The settings that the command line and the environment say, and the log level."""
    parser = argparse.ArgumentParser(prog="kd_operator", description=__doc__)
    add = parser.add_argument
    add("--namespace", default=os.environ.get("POD_NAMESPACE", "default"), help="its own, where its Lease is")
    add("--identity", default=os.environ.get("POD_NAME", socket.gethostname()), help="its pod's name")
    add("--plan-image", required=True, help="image of plan pods where the runtime names none")
    add("--runtime-image", required=True, help="image of other pods where the runtime names none")
    add("--watch-namespace", action="append", default=[], help="may be given several times; all where it is not")
    add("--progress-url", help="where pods post progress; none where it is left out")
    add("--port", type=int, default=Settings.port, help="of progress, metrics and probes")
    add("--image-pull-policy", default=Settings.image_pull_policy, choices=("Always", "IfNotPresent", "Never"))
    add("--workers", type=int, default=Settings.workers, help="jobs that are worked on at the same time")
    add("--lease-name", default=Settings.lease_name)
    add("--operator-label", action="append", default=[], type=_label, help="KEY=VALUE, of the operator's pods")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    given: dict[str, Any] = vars(parser.parse_args(words))
    labels, level = tuple(given.pop("operator_label")), given.pop("log_level")
    watched = tuple(dict.fromkeys(given.pop("watch_namespace")))
    return Settings(**given, watch_namespaces=watched, operator_labels=labels or Settings.operator_labels), level


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def main(words: Sequence[str] | None = None) -> None:
    """Run the operator."""
    settings, level = arguments(sys.argv[1:] if words is None else words)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if level != "DEBUG":
        logging.getLogger("kopf").setLevel(logging.WARNING)
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it misses signals, which are not its
    gc.collect()
    gc.freeze()  # what is there by now stays: looking through it again and again would hold everything up, 50 ms each time
    asyncio.run(operate(settings, decide))


if __name__ == "__main__":
    main()
