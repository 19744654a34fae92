"""The gradient is the slope of the value, by finite differences: thousands of passes, so in plain PyTorch alone."""

from __future__ import annotations

import pytest
import torch
from losses.examples import DIVERGENCES, case


@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "AdaptiveKL"])  # its weights are held
def test_gradients_are_the_slopes_of_the_value(divergence: str) -> None:
    built = case(positions=4, vocab=40, width=5, k=6, divergence=divergence)
    found = built.gradients(built.fast()[0])
    step = 1e-5
    for leaf, gradient in zip(built.leaves(), found, strict=True):
        flat, slopes = leaf.data.view(-1), torch.empty(leaf.numel(), dtype=torch.float64)
        for at in range(leaf.numel()):
            kept = float(flat[at])
            flat[at] = kept + step
            above = built.fast()[0].detach()
            flat[at] = kept - step
            slopes[at] = (above - built.fast()[0].detach()) / (2 * step)
            flat[at] = kept
        torch.testing.assert_close(gradient.view(-1), slopes, rtol=0, atol=1e-8)
