"""Derives the images' lock files from cpu.lock.txt, by the dependencies that the installed distributions declare.

An image holds what its roots need and nothing else: no tests, no linters, and in the operator's no torch. Every pin is
cpu.lock.txt's, so what the suite ran with is what the images hold. Usage: image_locks.py [--check], in the environment that
install.sh made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
NOT_IN_IMAGES = frozenset(
    {"pytest", "pytest-timeout", "pytest-xdist", "matplotlib", "trl", "ruff", "mypy", "import-linter", "hypothesis", "moto", "boto3-stubs", "types-psutil", "types-pyyaml", "gguf", "lupa"}
)
"""Of cpu.in: what only the suite, the linters and the demo need."""
OPERATOR_ONLY = frozenset({"kopf", "kubernetes"})


def pins(lock: Path) -> dict[str, str]:
    """Versions by canonical name."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def operator_roots() -> Iterator[Requirement]:
    """What kd_operator and the plan pod need: the project's own dependencies and its extra `operator`."""
    yield Requirement("kubedistill[operator]")


def runtime_roots() -> Iterator[Requirement]:
    """What every stage and the teacher need: cpu.in, which names vLLM's dependencies one by one, less tools and operator."""
    yield Requirement("kubedistill")
    for line in (HERE / "cpu.in").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) not in NOT_IN_IMAGES | OPERATOR_ONLY:
            yield requirement


def closure(roots: Iterable[Requirement], locked: dict[str, str]) -> dict[str, str]:
    """Pins of the roots and of all that they need and cpu.lock.txt has (which leaves out triton on purpose)."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(root.name), extra) for root in roots for extra in ("", *sorted(root.extras))]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name in locked:
            found[name] = locked[name]
        elif name != "kubedistill":
            continue
        try:
            lines = requires(name) or []
        except PackageNotFoundError as error:
            raise SystemExit(f"{name}: not installed; run requirements/install.sh before this") from error
        for needed in map(Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), wanted) for wanted in ("", *sorted(needed.extras))]
    return dict(sorted(found.items()))


def derived() -> dict[Path, str]:
    """The text of each image's lock file, by its path."""
    locked = pins(HERE / "cpu.lock.txt")
    texts = {}
    for name, roots in {"operator": operator_roots(), "runtime-cpu": runtime_roots()}.items():
        lines = "".join(f"{package}=={version}\n" for package, version in closure(roots, locked).items())
        texts[HERE / f"{name}.lock.txt"] = f"# Derived from cpu.lock.txt by image_locks.py (`make image-locks`); do not edit.\n{lines}"
    return texts


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 1 where --check found a difference."""
    stale = [path for path, text in derived().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.name} is not what cpu.lock.txt says; run `make image-locks`", file=sys.stderr)
        else:
            path.write_text(derived()[path])
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
