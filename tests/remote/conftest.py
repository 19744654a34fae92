"""An API server that says what a test has it say: for logs and failures, which a control plane without nodes cannot show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from kd_runtime.remote.cluster import Cluster

Answer = httpx.Response | dict[str, Any] | str
JOBS = "/apis/kubedistill.io/v1alpha1/namespaces/default/distillationjobs"


@dataclass
class Api:
    """Answers by path: an object, a text, or what a function makes of the request. Anything else is a 404."""

    answers: dict[str, Answer | Callable[[httpx.Request], Answer]] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        found = self.answers.get(request.url.path)
        if found is None:
            return missing(request.url.path.rpartition("/")[2])
        answer = found(request) if callable(found) else found
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json=answer) if isinstance(answer, dict) else httpx.Response(200, text=answer)

    def job(self, document: dict[str, Any]) -> None:
        """Hold a job."""
        self.answers[f"{JOBS}/{document['metadata']['name']}"] = document
        self.answers[JOBS] = {"items": [document]}


def missing(name: str) -> httpx.Response:
    """What the API server says of a name that it does not have."""
    body = {"reason": "NotFound", "message": f'"{name}" not found', "details": {"name": name}, "code": 404}
    return httpx.Response(404, json=body)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def cluster(api: Api) -> Iterator[Cluster]:
    with httpx.Client(transport=httpx.MockTransport(api), base_url="https://cluster.example:6443") as client:
        yield Cluster(client, "default", "context here")
