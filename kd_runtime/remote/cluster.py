"""The API server as the commands see it: objects in and out, and every refusal a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import httpx
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from kd_runtime.api.failures import DeniedError, KDError, SettingsError, TransientError
from kd_runtime.api.model import GROUP, VERSION
from kd_runtime.remote.access import open_access
from kd_runtime.remote.plain import line

FIELD_MANAGER = "kubedistill-cli"
JOBS = "distillationjobs"
RUNTIMES = "clusterdistillationruntimes"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"
PAGE = 500
Document = dict[str, Any]


class NotFound(SettingsError):
    """No object of that name."""


class Conflict(SettingsError):
    """Another writer owns a field, or was faster."""


class Unanswered(TransientError):
    """The API server does not answer, or not now."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of one cluster."""

    client: httpx.Client
    namespace: str
    where: str
    """In words: `context kind`."""

    def url(self, plural: str, name: str = "", *, api: str = f"/apis/{GROUP}/{VERSION}", scoped: bool = True) -> str:
        """The path of objects (or of one) of this namespace; ``scoped`` False: of the whole cluster."""
        scope = f"/namespaces/{self.namespace}" if scoped else ""
        return f"{api}{scope}/{plural}/{name}".rstrip("/")

    def get(self, url: str, **parameters: Any) -> Document:
        """One object, or one page. Raises as `send`."""
        found: Document = self.send("GET", url, **parameters).json()
        return found

    def list(self, url: str, **parameters: Any) -> list[Document]:
        """All objects, page by page. Raises as `send`."""
        items: list[Document] = []
        more: dict[str, Any] = {}
        while True:
            page = self.get(url, limit=PAGE, **parameters, **more)
            items += page.get("items", [])
            token = page.get("metadata", {}).get("continue")
            if not token:
                return items
            more = {"continue": token}

    def patch(self, url: str, body: Document, kind: str = MERGE, **parameters: Any) -> Document:
        """Change one object; what it is then. Raises as `send`."""
        parameters = {"fieldManager": FIELD_MANAGER, **parameters}
        done: Document = self.send("PATCH", url, body=body, content_type=kind, **parameters).json()
        return done

    def send(
        self, method: str, url: str, *, body: Document | None = None, content_type: str = JSON, **parameters: Any
    ) -> httpx.Response:
        """One request; what passes by itself (429, 5xx, a broken connection) is tried a few times.

        Raises:
            NotFound, Conflict, DeniedError, SettingsError, Unanswered: each with one sentence.
        """
        import json

        headers = {"Content-Type": content_type} if body is not None else {}
        content = json.dumps(body).encode() if body is not None else None

        @retry(
            retry=retry_if_exception(lambda error: isinstance(error, Unanswered)),
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(multiplier=0.3, max=3),
            reraise=True,
        )
        def attempt() -> httpx.Response:
            try:
                response = self.client.request(method, url, params=parameters, content=content, headers=headers)
            except httpx.TransportError as error:
                raise unreachable(self, error) from error
            if response.is_error:
                raise refusal(response.status_code, _said(response), self, f"{method} {url}")
            return response

        return attempt()

    @contextlib.contextmanager
    def stream(self, url: str, **parameters: Any) -> Iterator[Iterator[str]]:
        """Lines as they come, without a time limit between them. Raises as `send`."""
        timeout = httpx.Timeout(10.0, read=None)
        try:
            with self.client.stream("GET", url, params=parameters, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response.status_code, _said(response), self, f"GET {url}")
                yield _lines(response.iter_bytes())
        except httpx.TransportError as error:
            raise unreachable(self, error) from error


def connect(namespace: str | None, context: str | None, kubeconfig: Path | None) -> Cluster:
    """The cluster that a command is about. Raises SettingsError where no kubeconfig or context leads to one."""
    client, default, where = open_access(kubeconfig, context)
    return Cluster(client, namespace or default, where)


def unreachable(cluster: Cluster, error: httpx.TransportError) -> Unanswered:
    """What to say where nobody answers."""
    said = line(str(error)) or type(error).__name__
    return Unanswered(
        f"{cluster.client.base_url} ({cluster.where}): the API server does not answer ({said});"
        " see `kubectl cluster-info`, your network, or give another --context"
    )


def refusal(code: int, said: Document, cluster: Cluster, request: str) -> KDError:
    """What to say of an answer with ``code`` and the Status object ``said``."""
    message = line(str(said.get("message", ""))) or f"{request} was answered with {code}"
    if code == 401:
        return DeniedError(
            f"{cluster.where}: your credentials are not accepted (401); log in anew, or use another --context"
        )
    if code == 403:
        return DeniedError(f"{message}; ask for that right (docs/security.md lists them), or give -n another namespace")
    if code == 404:
        if said.get("reason") != "NotFound" or not said.get("details", {}).get("name"):
            return SettingsError(
                f"{cluster.where}: the cluster does not know {GROUP}/{VERSION}, so KubeDistill is not installed there;"
                " install it with `helm install kubedistill charts/kubedistill`, or give another --context"
            )
        return NotFound(f"{message}; see `kubectl get dj -A`")
    if code == 409:
        return Conflict(f"{message}")
    if code == 429 or code >= 500:
        return Unanswered(f"{cluster.where}: {message} ({code}); the API server is busy or starting, try again")
    return SettingsError(causes(said) or message)


def causes(said: Document) -> str:
    """What a Status object says is wrong, one line a field."""
    lines = []
    for cause in said.get("details", {}).get("causes", []):
        text = line(str(cause.get("message", "")))
        if "some validation rules were not checked" not in text:
            lines.append(f"{cause.get('field', '')}: {text}")
    return "\n".join(dict.fromkeys(lines))


def near(name: str, names: list[str], what: str) -> str:
    """A half sentence about names like ``name``: what was meant, or what there is."""
    close = get_close_matches(name, names, n=3, cutoff=0.5) or [n for n in names if name in n or n in name][:3]
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"{what} {shown}" if names else f"{what} none"


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Split at newlines alone: a carriage return within a line is a progress bar's."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (part.decode(errors="replace") for part in whole)
    if rest:
        yield rest.decode(errors="replace")


def _said(response: httpx.Response) -> Document:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
