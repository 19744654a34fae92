"""Writes crds/, docs/api.md and the chart's copies; with --check, fails where they are not what the models say."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from kd_runtime.api.crd import LIMIT_BYTES, crds
from kd_runtime.api.docs import reference

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = Path(__file__).parent / "runtimes"
CHART = ROOT / "charts" / "kubedistill" / "generated"
"""A chart can hold only what is in its own folder."""
_TOP = "# Generated from the models of kd_runtime.api by `make generate`; do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """No anchors: Kubernetes' tools read them, people do not."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def generated() -> dict[Path, str]:
    """The text of every generated file, by its path."""
    files = {
        ROOT / "crds" / name: _TOP + yaml.dump(crd, Dumper=_Dumper, sort_keys=False, width=2000)
        for name, crd in crds().items()
    }
    for path, text in files.items():
        if len(text.encode()) >= LIMIT_BYTES:
            raise ValueError(f"{path} has {len(text.encode())} bytes, not below {LIMIT_BYTES}")
    copies = {CHART / "crds" / path.name: text for path, text in files.items()}
    copies |= {CHART / "runtimes" / path.name: path.read_text() for path in sorted(RUNTIMES.glob("*.yaml"))}
    return {**files, **copies, ROOT / "docs" / "api.md": reference()}


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 1 where --check found a difference."""
    files = generated()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the models say; run `make generate`", file=sys.stderr)
        return int(bool(stale))
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
