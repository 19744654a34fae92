"""Compiles the Triton kernels for cards that are not here, and prints what each needs: a line of JSON."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kd_runtime.losses.rows import ABSENT, BLOCK, LOWEST
from kd_runtime.losses.triton_kernels import read_rows, write_gradient
from kd_runtime.losses.triton_rows import TritonPass

WHOLE = ("stride", "rows", "width")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(kernel: Any, element: str, capability: int, constants: dict[str, Any]) -> bytes:
    """The machine code of a kernel on logits of type ``element``; pointers and strides are multiples of 16."""
    types = {"z": f"*{element}"} | dict.fromkeys(WHOLE, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    places = {name: (at,) for at, name in enumerate(kernel.arg_names)}
    given = [name for name in kernel.arg_names if name not in constants and name != "rows"]
    source = ASTSource(
        kernel,
        signature,
        {places[name]: value for name, value in constants.items()},
        {places[name]: [["tt.divisibility", 16]] for name in given},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    code: bytes = made.asm["cubin"]
    return code


def resources(code: bytes) -> dict[str, int]:
    """Registers a thread and bytes that spill out of them, as NVIDIA's own tool reads them off the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(part.split(":", 1) for part in said.split() if part.count(":") == 1 and not part.endswith(":"))
    return {"registers": int(fields["REG"]), "spilled": int(fields["STACK"])}


def main() -> None:
    """Every kind of card, element type, temperature and soft-cap."""
    shape = TritonPass()
    found = {}
    for capability, element, temperature, softcap in itertools.product(
        (80, 90), ("bf16", "fp32"), (1.0, 2.0), (0.0, 30.0)
    ):
        constants = {"TEMPERATURE": temperature, "SOFTCAP": softcap, "COMPUTE": tl.float32, "ROWS": shape.rows}
        constants |= {"COLUMNS": shape.columns, "ABSENT": ABSENT, "LOWEST": LOWEST}
        more = {read_rows: {"WITH_MAXIMA": True, "BLOCK": BLOCK}, write_gradient: {}}
        for kernel, its in more.items():
            name = f"{kernel.fn.__name__} sm_{capability} {element} T={temperature:g} cap={softcap:g}"
            found[name] = resources(compiled(kernel, element, capability, constants | its))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
