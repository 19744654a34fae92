"""Nodes on which pods of jobs are: whether they still speak to the API server, and since when they do not."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from kd_operator.cluster.client import Cluster
from kd_operator.cluster.errors import Denied, NotFound
from kd_operator.cluster.reading import GPU_PRODUCT, node_is_ready, node_since

HELD_SECONDS = 30.0
"""How long a node that is ready is not read again for pods that nobody deletes: what follows of it follows after minutes."""
MOST_NODES = 16384
MOST_PRODUCT = 63
"""Characters of a label's value."""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node, as it was last read."""

    ready: bool
    since: datetime | None
    """Since when it is not; of one that is gone, since when that is known."""
    read: datetime
    gpu_product: str = ""
    """What its GPUs are called, by the label of NVIDIA's feature discovery; empty where it says nothing."""


class Nodes:
    """Reads nodes; all jobs share what was read a moment ago."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._seen: OrderedDict[str, NodeSeen] = OrderedDict()

    async def of(self, names: Collection[str], live: Collection[str], now: datetime) -> dict[str, NodeSeen]:
        """Nodes by name; those in ``live`` are read now."""
        stale = sorted(name for name in names if name in live or not self._holds(name, now))
        for name, node in zip(stale, await asyncio.gather(*(self._read(name, now) for name in stale)), strict=True):
            self._seen.pop(name, None)
            self._seen[name] = node
        found = {name: self._seen[name] for name in names}
        while len(self._seen) > MOST_NODES:
            self._seen.popitem(last=False)
        return found

    def _holds(self, name: str, now: datetime) -> bool:
        seen = self._seen.get(name)
        return seen is not None and seen.ready and 0.0 <= (now - seen.read).total_seconds() < HELD_SECONDS

    async def _read(self, name: str, now: datetime) -> NodeSeen:
        try:
            raw = await self.cluster.get("Node", name)
        except NotFound:
            before = self._seen.get(name)
            known = before.since if before is not None and not before.ready else None
            return NodeSeen(False, known or now, now)
        except Denied:  # rights of an older chart: then Kubernetes alone looks after lost nodes
            return NodeSeen(True, None, now)
        ready = node_is_ready(raw)
        labels = raw["metadata"].get("labels") or {}
        return NodeSeen(ready, None if ready else node_since(raw), now, labels.get(GPU_PRODUCT, "")[:MOST_PRODUCT])

    def gpu_product(self, name: str) -> str:
        """What a node's GPUs are called, as far as that was read: of one on which nothing runs any more it is not asked again."""
        seen = self._seen.get(name)
        return seen.gpu_product if seen is not None else ""
