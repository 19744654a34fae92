"""Which of several operators acts: whoever holds the Lease. It saves work; safety never rests on it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kd_operator.cluster.client import Cluster
from kd_operator.cluster.errors import ApiError, Conflict, NotFound

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. Whoever leads stops acting at ``give_up``, before anyone may take over at ``duration``."""

    duration: float = 15.0
    renew: float = 5.0
    retry: float = 2.0
    give_up: float = 10.0


@dataclass
class Elector:
    """Competes for a Lease for as long as ``run`` runs; ``leading`` is set while it is held."""

    cluster: Cluster
    namespace: str
    name: str
    identity: str
    now: Callable[[], datetime]
    clock: Callable[[], float]
    timing: Timing = Timing()
    changed: Callable[[bool], None] = lambda leads: None
    """Told when leadership comes and goes."""
    leading: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = 0.0
    """When it began to lead, by ``clock``."""
    _renewed: float = 0.0
    """When the last renewal that succeeded was begun."""
    _seen: tuple[Any, ...] = ()
    _seen_at: float = 0.0
    """When the record of another holder last changed: its clock is not trusted, only that it moves."""

    async def run(self) -> None:
        """Compete until cancelled."""
        while True:
            begun = self.clock()
            try:
                async with asyncio.timeout(self._left(self.timing.renew)):
                    held = await self._try()
            except (ApiError, TimeoutError) as error:
                log.warning("lease %s/%s: %s", self.namespace, self.name, error or "no answer in time")
                held, steady = self.leading.is_set() and self._left(1.0) > 0, False
            else:
                steady = held
                self._renewed = begun if held else self._renewed
            self._lead(held)
            pause = (self.timing.renew if steady else self.timing.retry) * random.uniform(0.8, 1.0)
            await asyncio.sleep(self._left(pause))

    def _left(self, seconds: float) -> float:
        """``seconds``, or while this operator leads what is left until it must give up."""
        if not self.leading.is_set():
            return seconds
        return max(0.0, min(seconds, self._renewed + self.timing.give_up - self.clock()))

    async def release(self) -> None:
        """Let another one lead at once; failures only make it wait for the Lease's end."""
        if not self.leading.is_set():
            return
        self._lead(False)
        try:
            async with asyncio.timeout(self.timing.retry):
                lease = await self._read()
                if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                    await self._put(lease, {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1})
        except (ApiError, TimeoutError) as error:
            log.warning("lease %s/%s was not released: %s", self.namespace, self.name, error or "no answer in time")

    async def _try(self) -> bool:
        """Take or renew the Lease if it is ours to take. Losing a race is no error."""
        lease = await self._read()
        try:
            if lease is None:
                await self._create()
                return True
            spec = lease.get("spec", {})
            if spec.get("holderIdentity") == self.identity:
                await self._put(lease, {**spec, **self._record()})
                return True
            if not self._expired(spec):
                return False
            changes = int(spec.get("leaseTransitions", 0)) + 1
            await self._put(lease, {**self._record(), "acquireTime": self._moment(), "leaseTransitions": changes})
            return True
        except Conflict:
            return False

    def _expired(self, spec: dict[str, Any]) -> bool:
        if not spec.get("holderIdentity"):
            return True
        record = (spec["holderIdentity"], spec.get("renewTime"), spec.get("leaseTransitions"))
        if record != self._seen:
            self._seen, self._seen_at = record, self.clock()
            return False
        return self.clock() - self._seen_at > float(spec.get("leaseDurationSeconds", self.timing.duration))

    def _lead(self, held: bool) -> None:
        if held == self.leading.is_set():
            return
        log.info("lease %s/%s: %s %s", self.namespace, self.name, self.identity, "leads" if held else "does not lead")
        if held:
            self.since = self.clock()
            self.leading.set()
        else:
            self.leading.clear()
        self.changed(held)

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self.cluster.get("Lease", self.name, self.namespace)
        except NotFound:
            return None

    async def _create(self) -> None:
        spec = {**self._record(), "acquireTime": self._moment(), "leaseTransitions": 0}
        await self.cluster.create({**self._named({}), "spec": spec})

    async def _put(self, lease: dict[str, Any], spec: dict[str, Any]) -> None:
        version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
        await self.cluster.replace({**self._named(version), "spec": spec})

    def _named(self, metadata: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": self.name, "namespace": self.namespace, **metadata}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}

    def _record(self) -> dict[str, Any]:
        seconds = max(1, round(self.timing.duration))
        return {"holderIdentity": self.identity, "leaseDurationSeconds": seconds, "renewTime": self._moment()}

    def _moment(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
