"""The way to a cluster's API server: a kubeconfig's context, or the ServiceAccount of the pod that this runs in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from kd_runtime.api.failures import SettingsError

if TYPE_CHECKING:
    from kubernetes.client import Configuration

DEFAULT_KUBECONFIG = "~/.kube/config"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT = httpx.Timeout(10.0, read=30.0)
MISSING_PACKAGE = (
    "commands about a cluster need the Python package kubernetes; install it with: pip install 'kubedistill[cluster]'"
)


class Login(httpx.Auth):
    """The header that a kubeconfig's user sends; tokens that end are fetched anew (exec plugins, OIDC)."""

    def __init__(self, configuration: Configuration):
        self._configuration = configuration

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        value = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if value:
            request.headers["Authorization"] = value
        yield request


def open_access(kubeconfig: Path | None, context: str | None) -> tuple[httpx.Client, str, str]:
    """A client of the API server, the namespace that the context names, and where it leads, in words.

    Raises:
        SettingsError: the package kubernetes is missing, there is no kubeconfig, or it is wrong or lacks the context.
    """
    try:
        from kubernetes.client import Configuration
        from kubernetes.config import ConfigException
    except ModuleNotFoundError as missing:
        raise SettingsError(MISSING_PACKAGE) from missing

    configuration = Configuration()
    try:
        namespace, where = _load(configuration, kubeconfig, context)
    except ConfigException as wrong:
        chosen = _kubeconfig(kubeconfig)
        raise SettingsError(f"{chosen}: {wrong}; correct it, or name another with --kubeconfig or --context") from wrong
    return _client(configuration), namespace, where


def _kubeconfig(given: Path | None) -> str:
    return str(given) if given else os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG


def _load(configuration: Configuration, given: Path | None, context: str | None) -> tuple[str, str]:
    from kubernetes.config import list_kube_config_contexts, load_incluster_config, load_kube_config

    files = _kubeconfig(given)
    there = any(Path(name).expanduser().is_file() for name in files.split(os.pathsep))
    if not there and given is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        load_incluster_config(configuration)
        return (POD_NAMESPACE.read_text() if POD_NAMESPACE.exists() else "default"), "the cluster of this pod"
    if not there:
        raise SettingsError(
            f"{files}: there is no such kubeconfig, so no cluster to talk to; set KUBECONFIG or give --kubeconfig"
            " (on this machine alone, `kd run FILE` needs no cluster)"
        )
    contexts, current = list_kube_config_contexts(files)
    named = {str(item["name"]): item for item in contexts}
    if context is not None and context not in named:
        raise SettingsError(f"--context {context}: {files} has no such context; it has {', '.join(named)}")
    chosen = named[context] if context is not None else current
    load_kube_config(files, chosen["name"], client_configuration=configuration)
    return chosen["context"].get("namespace") or "default", f"context {chosen['name']}"


def _client(configuration: Configuration) -> httpx.Client:
    trust = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        trust.load_cert_chain(configuration.cert_file, configuration.key_file)
    server_name = configuration.tls_server_name

    def name_server(request: httpx.Request) -> None:
        if server_name:
            request.extensions["sni_hostname"] = server_name

    return httpx.Client(
        base_url=configuration.host,
        verify=trust,
        auth=Login(configuration),
        timeout=TIMEOUT,
        proxy=configuration.proxy or None,
        event_hooks={"request": [name_server]},
        headers={"User-Agent": "kubedistill-cli"},
    )
