"""The API server, spoken to in plain dicts: every request has a time limit, reads are tried again, writes never are."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp

from kd_operator.cluster.errors import (
    ApiError,
    NotFound,
    ServerError,
    TooManyRequests,
    Unreachable,
    error_of,
)
from kd_operator.cluster.kinds import KINDS
from kd_operator.cluster.login import Login, login

Object = dict[str, Any]

REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
READ_TRIES = 3
READ_PAUSE_SECONDS = 0.2
"""Before the second try; before the third, four times as long."""
LONGEST_PAUSE_SECONDS = 5.0
"""A server that asks for more than this is not waited for here: the key comes back later."""
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "delete": "DELETE"}


class Cluster:
    """Reads and writes objects of one API server."""

    def __init__(
        self,
        account: Login,
        *,
        request_seconds: float = REQUEST_SECONDS,
        answered: Callable[[str, int], None] = lambda verb, code: None,
    ) -> None:
        self.account = account
        self.request_seconds = request_seconds
        self.answered = answered
        """Told of every request: its verb in Kubernetes' words, and the HTTP status; 0 where no answer came."""
        self.when_restored: list[Callable[[], None]] = []
        """Called where etcd is found to have been restored: resourceVersions from before are of another history."""

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """One object, as it is now."""
        return await self._read(KINDS[kind].path(namespace, name))

    async def find(
        self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "", at_least: int = 0
    ) -> list[Object]:
        """Every object that has ``labels`` (a selector), as they are now; or as they were at some moment since the
        resourceVersion ``at_least`` of such an object, which the API server knows of without asking etcd first.

        Not in pages: with a ``limit`` the API server reads and decodes all objects of the namespace from etcd, whatever
        their labels; without one it answers from its memory, which it has made sure is as new (measured: a sixth of its CPU).
        """
        query = {"labelSelector": labels, "fieldSelector": fields}
        if at_least:
            query |= {"resourceVersion": str(at_least), "resourceVersionMatch": "NotOlderThan"}
        try:
            listed = await self._list(kind, namespace, query)
        except ServerError:
            if not at_least:
                raise
            listed = await self._list(kind, namespace, query | {"resourceVersion": "", "resourceVersionMatch": ""})
            if int(listed["metadata"]["resourceVersion"]) < at_least:
                for forget in self.when_restored:
                    forget()
        found: list[Object] = listed["items"]
        return found

    async def _list(self, kind: str, namespace: str | None, query: dict[str, str]) -> Object:
        given = urlencode({key: value for key, value in query.items() if value})
        return await self._read(KINDS[kind].path(namespace), f"?{given}")

    async def serves(self, kind: str) -> bool:
        """Whether the API server knows a kind by now: a chart's CRDs may come after the operator."""
        version, plural = KINDS[kind].api_version, KINDS[kind].plural
        try:
            known = await self._read(f"/apis/{version}" if "/" in version else f"/api/{version}")
        except NotFound:
            return False
        return any(resource["name"] == plural for resource in known["resources"])

    async def create(self, manifest: Object) -> Object:
        """Create an object; Conflict where its name is taken."""
        kind = KINDS[manifest["kind"]]
        return await self._ask("create", kind.path(manifest.get("metadata", {}).get("namespace")), manifest)

    async def replace(self, manifest: Object, part: str = "") -> Object:
        """Put an object, or its ``part`` (`status`), in place of the one that has the same resourceVersion."""
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        return await self._ask("update", f"{path}/{part}" if part else path, manifest)

    async def put_status(self, job: Object, status: Object) -> Object:
        """Write the status of the job that ``job`` (its metadata suffice) is a reading of; Conflict if it changed since."""
        kept = ("name", "namespace", "uid", "resourceVersion")
        metadata = {key: value for key, value in job["metadata"].items() if key in kept}
        kind = KINDS["DistillationJob"]
        body = {"apiVersion": kind.api_version, "kind": "DistillationJob", "metadata": metadata, "status": status}
        return await self.replace(body, "status")

    async def delete(
        self, kind: str, name: str, namespace: str | None, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Delete an object, what it owns after it; Conflict where the object of that name has another uid."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._ask("delete", KINDS[kind].path(namespace, name), options)

    async def close(self) -> None:
        """End every connection."""
        await self.account.client.close()

    async def _read(self, path: str, query: str | None = None) -> Object:
        """Get ``path``; list it, where there is a ``query``."""
        pause = READ_PAUSE_SECONDS
        for tried in range(1, READ_TRIES + 1):
            try:
                return await self._ask("get" if query is None else "list", path + (query or ""))
            except (TooManyRequests, ServerError, Unreachable) as error:
                wanted = max(pause * random.uniform(0.5, 1.5), error.retry_after or 0.0)
                if tried == READ_TRIES or wanted > LONGEST_PAUSE_SECONDS:
                    raise
                await asyncio.sleep(wanted)
                pause *= 4
        raise AssertionError("unreachable")

    async def _ask(self, verb: str, path: str, body: Object | None = None) -> Object:
        status = 0
        try:
            status, content, retry_after = await self._send(_METHODS[verb], path, body)
        finally:
            self.answered(verb, status)
        if status == 401:
            self.account.stale = True
        if status >= 400:
            raise _failure(f"{verb} {path.partition('?')[0]}", status, content, retry_after)
        try:
            found: Object = json.loads(content)
        except ValueError as error:
            raise Unreachable(status, "NotJSON", f"{verb} {path}: {error}") from error
        return found

    async def _send(self, method: str, path: str, body: Object | None) -> tuple[int, bytes, str | None]:
        client = self.account.client
        timeout = aiohttp.ClientTimeout(total=self.request_seconds, sock_connect=CONNECT_SECONDS)
        try:
            headers = {"Accept": "application/json", **await self.account.authorised()}
            url = client.configuration.host + path
            answer = await client.call_api(method, url, headers, body, _request_timeout=timeout, _preload_content=False)
            return answer.status, await answer.read(), answer.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error


async def connect(
    *,
    pool: int = 64,
    server: str | None = None,
    request_seconds: float = REQUEST_SECONDS,
    answered: Callable[[str, int], None] = lambda verb, code: None,
) -> Cluster:
    """Log in, and return the cluster; no request is made yet. ``server`` overrides the API server's address."""
    return Cluster(await login(pool, server), request_seconds=request_seconds, answered=answered)


def _failure(what: str, status: int, content: bytes, retry_after: str | None) -> ApiError:
    try:
        said = json.loads(content)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):  # a proxy's page
        reason, message = "", content[:200].decode(errors="replace")
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return error_of(status, reason, f"{what}: {message}", seconds)
