"""Triton's pass over the rows: when it is chosen, that its other tests run somewhere, and the loss as a whole on a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from losses.examples import DIVERGENCES, case
from losses.passes import passes_here
from torch import nn

from kd_runtime.losses import head, triton_rows
from kd_runtime.losses.torch_rows import TorchPass
from kd_runtime.losses.triton_rows import TritonPass, row_pass_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HERE, APART = Path(__file__).parent, Path(sys.prefix, "triton")
"""Tests, and where the installation puts Triton: apart, so that nothing else on a CPU takes it for a GPU's."""


def test_it_is_chosen_for_cuda_alone_and_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, on_cuda in ((True, TritonPass), (False, TorchPass)):
        monkeypatch.setattr(triton_rows, "find_spec", lambda name, installed=installed: object() if installed else None)
        assert isinstance(row_pass_for(CUDA), on_cuda)
        assert isinstance(row_pass_for(CPU), TorchPass)


def test_nothing_needs_triton_to_be_imported() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import kd_runtime.losses.head, kd_runtime.losses.triton_rows\n"
        "assert 'kd_runtime.losses.triton_kernels' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_rows_stay_bfloat16_and_float16_is_widened() -> None:
    for given, kept in (
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ):
        assert TritonPass().buffer_dtype(given) == kept
    assert TorchPass(16).buffer_dtype(torch.bfloat16) == torch.float32


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "softcap": 3.0}])
@pytest.mark.parametrize("rows", [1, 4])
def test_tiles_of_any_shape_give_the_same(settings: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a program, as on a GPU, and rows of many tiles whose last is not full."""
    if isinstance(passes_here("triton"), TritonPass):
        monkeypatch.setattr(head, "row_pass_for", lambda device: TritonPass(rows, 64))
    built = case(positions=6, vocab=300, **settings)
    loss, dense = built.fast()[0], built.dense()
    torch.testing.assert_close(loss, dense, rtol=1e-10, atol=1e-10)
    for found, expected in zip(built.gradients(loss), built.gradients(dense), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_soft_cap_is_as_exact_in_float32_as_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From logits near 0 to such that are far above the cap."""
    found = passes_here("triton")
    built = case(positions=40, vocab=500, dtype=torch.float32, softcap=2.0)
    spread = torch.logspace(-4, 2, 40)[:, None]
    built = built.with_(hidden=(built.hidden.detach() * spread).requires_grad_())
    results = []
    for each in (TorchPass(16), found):
        monkeypatch.setattr(head, "row_pass_for", lambda device, each=each: each)
        results.append(built.gradients(built.fast()[0]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


@pytest.mark.runtime
def test_the_tests_of_the_loss_pass_in_tritons_interpreter() -> None:
    """In a process of their own: the kernels look at TRITON_INTERPRET when they are imported."""
    if importlib.util.find_spec("triton") and torch.cuda.is_available():
        pytest.skip("a GPU is here: the same tests run on it, in this process")
    if not (APART / "triton").is_dir():
        pytest.skip(f"Triton is not in {APART}; requirements/install.sh puts it there")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(APART), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        str(HERE),
        "-m",
        "not runtime",
        "-k",
        "triton",
        "-p",
        "no:cacheprovider",
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, cwd=HERE.parents[1])
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " skipped" not in ran.stdout.splitlines()[-1], ran.stdout[-3000:]
    assert int(ran.stdout.splitlines()[-1].split(" passed")[0].split()[-1]) > 250


@pytest.mark.runtime
def test_the_kernels_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    """To machine code of A100 and H100, without a register that spills."""
    if not (APART / "triton").is_dir():
        pytest.skip(f"Triton is not in {APART}; requirements/install.sh puts it there")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(APART), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(HERE / "compile_kernels.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=HERE.parents[1])
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert len(found) == 32
    assert {name for name, needs in found.items() if needs["spilled"]} == set()
    assert max(needs["registers"] for needs in found.values()) <= 128  # two programs of 256 threads on a processor


@pytest.mark.runtime
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here: the loss as a whole on CUDA is not run")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_on_a_gpu_is_the_reference(divergence: str, dtype: torch.dtype) -> None:
    wide = case(positions=64, vocab=5000, k=16, divergence=divergence)
    hidden = wide.hidden.detach().to(CUDA, dtype).requires_grad_()
    weight = nn.Parameter(wide.weight.detach().to(CUDA, dtype))
    loss_head = head.SparseKDHead(weight, vocab=wide.vocab, divergence=divergence, parameters=wide.parameters)
    assert isinstance(loss_head._sized(hidden).row_pass, TritonPass)
    targets = (wide.labels, wide.top_ids, *wide.targets(), wide.kd_mask, wide.ce_mask)
    on_gpu = [each.to(CUDA) for each in targets]
    loss, _ = loss_head(hidden, *on_gpu, kd_weight=wide.kd_weight, ce_weight=wide.ce_weight)
    torch.testing.assert_close(loss.double().cpu(), wide.dense(), rtol=1e-4 if dtype == torch.float32 else 0.02, atol=0)
    found = torch.autograd.grad(loss, [hidden, weight])
    for one, expected in zip(found, wide.gradients(wide.dense()), strict=True):
        cosine = torch.cosine_similarity(one.double().cpu().flatten(), expected.flatten(), dim=0)
        assert float(cosine) > (0.999999 if dtype == torch.float32 else 0.999)
