"""Requests and limits of a container: the stage's own settings first, then the runtime's, then these defaults."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from kd_operator.children.context import ChildContext, Component
from kd_runtime.api.operation import Resources

_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
}


@dataclass(frozen=True)
class Needs:
    """What a component's container gets where nobody says: CPU in thousandths, memory in MiB, and more for each GPU."""

    cpu: int
    memory: int
    memory_limit: int
    cpu_per_gpu: int = 4000
    memory_per_gpu: int = 32 * 1024

    def requests(self, gpus: int) -> dict[str, str]:
        """What is reserved."""
        cpu, memory = self.cpu + gpus * self.cpu_per_gpu, self.memory + gpus * self.memory_per_gpu
        return {"cpu": f"{cpu}m", "memory": f"{memory}Mi"}

    def limits(self, gpus: int) -> dict[str, str]:
        """What is the most. Of memory alone: a limit of CPU slows threads down, and protects nothing."""
        return {"memory": f"{self.memory_limit + 2 * gpus * self.memory_per_gpu}Mi"}


DEFAULTS = {
    Component.Plan: Needs(cpu=100, memory=256, memory_limit=1024),
    Component.Teacher: Needs(cpu=1000, memory=4096, memory_limit=8192),
    Component.Workers: Needs(cpu=250, memory=512, memory_limit=4096),
    Component.Trainer: Needs(cpu=1000, memory=4096, memory_limit=8192),
    Component.Tools: Needs(cpu=500, memory=2048, memory_limit=8192),
}
"""For models of up to about a billion parameters on CPUs, or what GPU nodes usually have for each GPU."""


@dataclass(frozen=True)
class ContainerResources:
    """Requests and limits, as a container says them."""

    requests: dict[str, str]
    limits: dict[str, str]

    @property
    def threads(self) -> int:
        """Threads that the reserved CPU is enough for, at least one."""
        return max(1, int(amount(self.requests["cpu"])))


def container_resources(ctx: ChildContext, component: Component, own: Resources) -> ContainerResources:
    """Of a container of ``component``, where the stage says ``own``.

    Memory that a stage asks for is reserved and is the limit. Defaults never contradict what is said: a request is at
    most the limit that the runtime says, a limit at least the request.
    """
    given, gpus = ctx.pod_settings(component).resources, own.gpus_per_node
    requests, limits = dict(given.requests), dict(given.limits)
    if own.cpu is not None:
        requests["cpu"] = own.cpu
        if "cpu" in limits:
            limits["cpu"] = max(limits["cpu"], own.cpu, key=amount)
    if own.memory is not None:
        requests["memory"] = limits["memory"] = own.memory
    if gpus:
        requests[ctx.runtime.spec.gpu_resource_name] = limits[ctx.runtime.spec.gpu_resource_name] = str(gpus)
    for name, value in DEFAULTS[component].requests(gpus).items():
        requests.setdefault(name, min(value, limits.get(name, value), key=amount))
    for name, value in DEFAULTS[component].limits(gpus).items():
        limits.setdefault(name, max(value, requests.get(name, value), key=amount))
    return ContainerResources(requests, limits)


def amount(quantity: str) -> Decimal:
    """A Kubernetes quantity as a number: "500m" is 0.5, "1Ki" is 1024."""
    number = quantity.rstrip("mkKMGTPi")
    return Decimal(number) * _SUFFIXES[quantity[len(number) :]]
