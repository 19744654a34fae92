"""A user's divergence is found by entry point, and autograd gives the slopes that a built-in one writes down."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from losses.examples import case
from torch import Tensor

from kd_runtime.api.failures import SettingsError
from kd_runtime.losses import custom
from kd_runtime.losses.divergences import Parameters

pytestmark = pytest.mark.usefixtures("each_row_pass")

WRONG = {"whole": lambda p, q: q.sum(), "numbers": lambda p, q: 3.0, "teacher": lambda p, q: p.exp().sum(-1)}
NAMES = {"mine": "kd_runtime.losses.reference:forward_kl", "number": "math:pi"} | {
    name: f"losses.test_losses_custom:{name}" for name in WRONG
}
whole, numbers, teacher = WRONG.values()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoints(EntryPoint(name, value, custom.GROUP) for name, value in NAMES.items())
    monkeypatch.setattr(custom, "entry_points", lambda group: found.select(group=group))


def test_it_equals_the_built_in_one_of_the_same_formula() -> None:
    built = case(divergence="ForwardKL")
    mine = built.with_(divergence="Custom", parameters=Parameters(function="mine"))
    loss, _ = mine.fast(7)
    torch.testing.assert_close(loss, built.fast()[0])
    for found, expected in zip(built.gradients(loss), built.gradients(built.fast()[0]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_it_works_where_no_gradient_is_wanted() -> None:
    built = case(divergence="Custom", parameters=Parameters(function="mine"))
    with torch.inference_mode():
        loss, _ = built.fast()
    assert float(loss) == pytest.approx(float(built.with_(divergence="ForwardKL").fast()[0].detach()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "absent",
            r"objective\.function: 'absent' is no entry point of group kubedistill\.divergences \(installed: mine",
        ),
        ("number", "which is no function"),
        ("whole", r"returned \[\], a value for each of 23 positions"),
        ("numbers", "returned float"),
        ("teacher", "does not depend on the student"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        case(divergence="Custom", parameters=Parameters(function=name)).fast()


def hellinger(log_p: Tensor, log_q: Tensor) -> Tensor:
    return 1 - ((log_p + log_q) / 2).exp().sum(-1)


def test_the_example_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoints([EntryPoint("hellinger", "losses.test_losses_custom:hellinger", custom.GROUP)])
    monkeypatch.setattr(custom, "entry_points", lambda group: found)
    built = case(ce_weight=0.0)
    mine = built.with_(divergence="Custom", parameters=Parameters(function="hellinger"))
    half = built.with_(divergence="AlphaBeta", parameters=Parameters(a=0.5, b=0.5))
    torch.testing.assert_close(4 * mine.fast()[0], half.fast()[0])
