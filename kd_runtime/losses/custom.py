"""A user's own divergence: a Python function found by entry point, whose slopes autograd finds.

    [project.entry-points."kubedistill.divergences"]
    hellinger = "my_package:hellinger"

    def hellinger(log_p, log_q):                # [P, K+1] each: the head, and the tail as one bucket
        return 1 - ((log_p + log_q) / 2).exp().sum(-1)

A category that is absent has log p = log q = a large negative number.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from kd_runtime.api.failures import SettingsError

GROUP = "kubedistill.divergences"
UserFunction = Callable[[Tensor, Tensor], Tensor]
"""(log p [P, K+1], log q [P, K+1]) -> D [P] in nats, made of differentiable operations on log q."""


def entry_point(name: str) -> UserFunction:
    """The function of that name. SettingsError, with the names there are, where no installed package has it."""
    found = entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise SettingsError(
            f"objective.function: {name!r} is no entry point of group {GROUP} (installed: {known}); install the package "
            "that has it in the runtime's image"
        )
    function: Any = found[name].load()
    if not callable(function):
        raise SettingsError(f"objective.function: entry point {name!r} is {function!r}, which is no function; name one")
    loaded: UserFunction = function
    return loaded


def differentiated(function: UserFunction, name: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The value of ``function`` [P] and h = q dD/dq = dD/d(log q) [P, K+1], which is small and so costs little."""

    def both(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():  # the loss runs inside an autograd function's forward
            leaf = log_q.clone().requires_grad_()
            value = function(log_p.clone(), leaf)
            if not isinstance(value, Tensor) or value.shape != log_q.shape[:1]:
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise SettingsError(
                    f"objective.function: {name!r} returned {shape}, a value for each of {len(log_q)} positions is "
                    "expected; sum over the last axis"
                )
            if not value.requires_grad:
                raise SettingsError(f"objective.function: {name!r} does not depend on the student; use log q in it")
            (h,) = torch.autograd.grad(value.sum(), [leaf])
        return value.detach(), h

    return both
