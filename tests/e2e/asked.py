"""What pods of a real node ask their teacher, seen between the two, and what was committed by then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from e2e.tiny_jobs import SECONDS, SEED
from kd_operator.names import TEACHER_PORT
from local.recording_proxy import RecordingProxy, meant, recording_proxy
from real_node import ACCESS, BUCKET, REGION, Node, run

from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.artifacts.units import ANSWERS

HALT_ROWS = 32
"""Rows that are asked to be scored before capture is halted: more than the smoke test's 16, and far from all."""


@contextmanager
def asked(node: Node, name: str) -> Iterator[RecordingProxy]:
    """All that is asked while the block runs, judged by the commits in the store of the job ``name``.

    The kernel turns what pods send to a teacher's port to a proxy, which sends it on to whom they meant.
    """
    with recording_proxy(_store(node, name), SEED, upstream=meant, host="0.0.0.0") as proxy:
        ports = ["--dport", str(TEACHER_PORT), "-j", "REDIRECT", "--to-ports", str(urlsplit(proxy.url).port)]
        rule = ["PREROUTING", "-p", "tcp", *ports]
        run(["iptables", "-w", "10", "-t", "nat", "-I", *rule], node.environment, 30)
        try:
            yield proxy
        finally:
            run(["iptables", "-w", "10", "-t", "nat", "-D", *rule], node.environment, 30)


@contextmanager
def halted_capture(node: Node, name: str, proxy: RecordingProxy) -> Iterator[None]:
    """The middle of capture: some of it is committed, and a worker waits for an answer to what its teacher gets after the block."""
    reached, over = threading.Event(), threading.Event()

    def hold() -> None:
        scored = sum(isinstance(one.question, str) for one in proxy.seen)
        if scored > HALT_ROWS and not reached.is_set():
            reached.set()
            over.wait(SECONDS)

    proxy.before = hold
    try:
        assert reached.wait(SECONDS), node.told(name)
        assert any(isinstance(question, str) for question in proxy.committed())
        yield
    finally:
        over.set()


def _store(node: Node, name: str) -> Store:
    store = open_store(f"s3://{BUCKET}/{name}/", endpoint=node.endpoint, region=REGION)
    with pytest.MonkeyPatch.context() as keys:
        for variable, value in ACCESS.items():
            keys.setenv(variable, value)
        next(iter(store.list(ANSWERS)), None)  # its client is made at first use
    return store
