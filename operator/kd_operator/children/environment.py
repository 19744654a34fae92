"""Environment variables of containers: what every pod gets, and the Secrets of the pods that need them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from kd_operator.children.context import ChildContext, Component
from kd_operator.children.resources import amount
from kd_runtime.api.job import ModelSource
from kd_runtime.api.model import SecretReference
from kd_runtime.api.runtime_pods import ScratchVolume
from kd_runtime.api.secret_variables import secret_variable

Environment = dict[str, dict[str, Any]]
"""Name -> ``{"value": …}`` or ``{"valueFrom": …}``."""

SCRATCH_PATH = "/tmp"
CACHE_PATH = "/var/cache/kubedistill"
CA_PATH = "/etc/kubedistill/ca"
RESULT_PATH = "/dev/termination-log"
SCRATCH_SIZE = "50Gi"
"""Of a scratch volume of a storage class, where the runtime says no size: such a volume must have one."""
CACHE_SHARE = Decimal("0.5")
"""Of scratch that has a size, where the cache lies in it: checkpoints and temporary files need the rest."""
_HUB = "hf://"
_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}
_INSIDE = "localhost,127.0.0.1,.svc"
"""What no proxy is asked for: the job's teacher and the operator."""
_TRUST_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")


def plain(**values: str) -> Environment:
    """Variables with plain values."""
    return {name: {"value": value} for name, value in values.items()}


def from_secret(name: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    """The value of one entry of a Secret; without ``optional`` a pod does not start before the entry is there."""
    reference: dict[str, Any] = {"name": name, "key": key}
    return {"valueFrom": {"secretKeyRef": reference | ({"optional": True} if optional else {})}}


def base_environment(ctx: ChildContext, component: Component) -> Environment:
    """Of every pod: folders that can be written, the runtime's variables, and the store's credentials.

    What the runtime sets is taken before our own conveniences, and never instead of what the stage command relies on.
    """
    cached = ctx.pod_settings(component).cache is not None
    environment = plain(HOME=SCRATCH_PATH, TMPDIR=SCRATCH_PATH, PYTHONUNBUFFERED="1")
    if ctx.runtime.spec.ca_bundle_config_map is not None:
        file = f"{CA_PATH}/{ctx.runtime.spec.ca_bundle_config_map.key}"
        environment |= plain(**dict.fromkeys(_TRUST_VARIABLES, file))
    environment |= plain(**_runtime_variables(ctx))
    environment |= plain(KD_CACHE_DIR=CACHE_PATH if cached else f"{SCRATCH_PATH}/kd-cache", KD_RESULT_FILE=RESULT_PATH)
    size = scratch_size(ctx.pod_settings(component).scratch)
    if not cached and size is not None:  # beyond its size the node evicts the pod, again and again
        environment |= plain(KD_CACHE_BYTES=str(int(amount(size) * CACHE_SHARE)))
    # An empty one too: clients refuse private addresses only where it is set.
    environment |= plain(KD_PRIVATE_CIDRS=",".join(ctx.runtime.spec.network.private_cidrs))
    return environment | _store_credentials(ctx)


def scratch_size(scratch: ScratchVolume) -> str | None:
    """How large scratch may become; None where only the node's disk says."""
    return scratch.size or (SCRATCH_SIZE if scratch.storage_class_name is not None else None)


def _runtime_variables(ctx: ChildContext) -> dict[str, str]:
    """The runtime's own; where they name a proxy, addresses within the cluster are reached without it."""
    said = {variable.name: variable.value for variable in ctx.runtime.spec.env}
    if _PROXIES.isdisjoint(name.lower() for name in said):
        return said
    spared = said.get("NO_PROXY") or said.get("no_proxy")
    spared = f"{spared},{_INSIDE}" if spared else _INSIDE
    return {**said, "NO_PROXY": spared, "no_proxy": spared}


def _store_credentials(ctx: ChildContext) -> Environment:
    reference = ctx.job.spec.artifacts.credentials_secret_ref
    if reference is None:
        return {}
    return {
        "AWS_ACCESS_KEY_ID": from_secret(reference.name, "AWS_ACCESS_KEY_ID"),
        "AWS_SECRET_ACCESS_KEY": from_secret(reference.name, "AWS_SECRET_ACCESS_KEY"),
        "AWS_SESSION_TOKEN": from_secret(reference.name, "AWS_SESSION_TOKEN", optional=True),
    }


def hub_tokens(*sources: ModelSource) -> Environment:
    """Tokens of those of ``sources`` that lie on the Hub: of other places the store's credentials are used."""
    return secret_variables(source.secret_ref for source in sources if source.uri.startswith(_HUB))


def dataset_token(ctx: ChildContext) -> Environment:
    """The token of the dataset, where it lies on the Hub."""
    dataset = ctx.job.spec.dataset
    return secret_variables([dataset.secret_ref] if dataset.uri.startswith(_HUB) else [])


def secret_variables(references: Iterable[SecretReference | None]) -> Environment:
    """KD_SECRET_<NAME>_<KEY> of each reference."""
    return {
        secret_variable(f"{reference.name}/{reference.key}"): from_secret(reference.name, reference.key)
        for reference in references
        if reference is not None
    }


def store_arguments(ctx: ChildContext) -> tuple[str, ...]:
    """--endpoint and --region, where the job says them."""
    artifacts = ctx.job.spec.artifacts
    said = {"--endpoint": artifacts.endpoint, "--region": artifacts.region}
    return tuple(word for flag, value in said.items() if value is not None for word in (flag, value))
