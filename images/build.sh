#!/usr/bin/env bash
# Builds both images: localhost/kubedistill/operator:TAG and localhost/kubedistill/runtime:TAG (runtime-cuda:TAG of the CUDA target).
#
#   images/build.sh [TAG]             TAG is the project's version unless said: what the chart asks for
#   KD_IMAGE_BUILD   the command that takes `TAG -f FILE ... FOLDER`; default: docker build -t. In tests: "$KD_TEST_KIT build"
#   KD_IMAGES        which of `operator runtime`; default: both
#   KD_IMAGE_TARGET  of runtime: cpu (default) or cuda
#   KD_IMAGE_REGISTRY  what the names begin with; default: localhost/kubedistill
#
# The dependencies' layer gets a tag of its own, by the hash of the lock file and the Dockerfile. So it outlives a pruning, a
# second build takes seconds, and `images/build.sh --dependencies-tag IMAGE` tells whether a registry has it already.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
registry=${KD_IMAGE_REGISTRY:-localhost/kubedistill}
target=${KD_IMAGE_TARGET:-cpu}
read -ra build <<< "${KD_IMAGE_BUILD:-docker build -t}"

lock() { case $1 in operator) echo operator.lock.txt ;; runtime) echo "runtime-$target.lock.txt" ;; esac; }
dependencies_tag() {
  local hash
  hash=$(cat "$root/requirements/$(lock "$1")" "$root/images/$1/Dockerfile" | sha256sum | cut -c1-16)
  echo "$registry/$1-dependencies:$hash"
}
if [[ ${1:-} == --dependencies-tag ]]; then dependencies_tag "$2"; exit; fi

tag=${1:-$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/kd_runtime/__init__.py")}
for image in ${KD_IMAGES:-operator runtime}; do
  name=$image
  case $image in
    operator) stage=dependencies final=operator ;;
    runtime) stage=$target-dependencies final=$target; [[ $target == cpu ]] || name=$image-$target ;;
  esac
  file=$root/images/$image/Dockerfile
  "${build[@]}" "$(dependencies_tag "$image")" -f "$file" --target "$stage" "$root"
  "${build[@]}" "$registry/$name:$tag" -f "$file" --target "$final" "$root"
done
