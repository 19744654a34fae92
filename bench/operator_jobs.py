"""The operator under load: jobs of five stages with a teacher arrive one by one on simulated nodes and run to their ends.

python bench/operator_jobs.py [--jobs 1000] [--every 2] [--compare 100] [--idle 5000] [--into docs/benchmarks-operator.md]

Ends with 1, naming each goal that is missed. Real are the API server with its controllers and scheduler, the operator's
process, its rights (a ServiceAccount), and pods' progress posts with projected tokens; containers are not: a stand-in for
the kubelet ends each pod after its time with the result that it would have. Needs the cluster kit (KD_TEST_KIT).
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import random
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml
from measuring import Figure, Goal, at_most
from results import Results, command, machine

from kd_runtime.api.model import GROUP, VERSION

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import manifests
from cluster_server import Server, api_server
from fake_kubelet import PODS, Api, End, Kubelet, PodMet, WholeKubelet, heartbeats
from job_children import job as job_document
from job_children import runtime as runtime_document
from job_record import Child, Record, Story, check
from kd_operator import names
from kit import crash

Object = dict[str, Any]

RELEASE = "kubedistill"
"""Of the chart: its name, its namespace, its account and its Lease."""
ACCOUNT = f"system:serviceaccount:{RELEASE}:{RELEASE}"
WRITES = ("create", "update", "patch", "delete")
UNCOUNTED = ("events", "tokenreviews", "leases")
POST_SECONDS = 10.0
OF_CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
AT_REST_MB, IDLE_KB, ACTIVE_KB = 160.0, 20.0, 80.0
START_SECONDS = 4.0


@dataclass(frozen=True)
class Load:
    """What arrives."""

    jobs: int
    every: float
    seconds: tuple[float, float]
    """How long a stage's pods run."""
    long_share: float
    long_seconds: float
    """Some stages run so long that progress is written."""


@dataclass
class Sample:
    """One moment of the processes."""

    at: float
    cpu: dict[str, float]
    rss: dict[str, float]
    active: int
    resting: int

    def allowed(self) -> float:
        """MB that the operator may use."""
        return AT_REST_MB + self.resting * IDLE_KB / 1000 + self.active * ACTIVE_KB / 1000


@dataclass
class Seen:
    """What the benchmark's own watches saw of one job."""

    moved: float = 0.0
    """When the last event was seen that lets the operator go on."""
    reactions: list[tuple[str, float, float]] = field(default_factory=list)
    """Which child came, after how many seconds, and when."""


class Posts:
    """Pods that report as a stage does: at once, then every 10 s, each from its node's address, with a token of its own.

    The token is what the kubelet would project: bound to the pod, for the job's audience, by TokenRequest.
    """

    def __init__(self, api: Api, port: int):
        self.api, self.port = api, port
        self.sessions: dict[str, aiohttp.ClientSession] = {}
        self.answers: Counter[int] = Counter()

    async def run(self, pod: PodMet, seconds: float) -> None:
        """Report until the pod has ended."""
        token = await self._token(pod)
        begun = time.monotonic()
        while (left := seconds - (time.monotonic() - begun)) > 0:
            await self._post(pod, token, int(1000 * (1 - left / seconds)))
            await asyncio.sleep(min(left, POST_SECONDS))

    async def _token(self, pod: PodMet) -> str:
        metadata = pod.raw["metadata"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        audience = names.audience(pod.job["metadata"]["uid"])
        spec = {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound}
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/default/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        status, answer = await self.api.ask("POST", path, body)
        if status != 201:
            raise RuntimeError(f"TokenRequest for {metadata['name']}: {status} {answer.get('message')}")
        return str(answer["status"]["token"])

    async def _post(self, pod: PodMet, token: str, done: int) -> None:
        job = pod.job["metadata"]
        url = f"http://127.0.0.1:{self.port}/v1/progress/{job['namespace']}/{job['name']}"
        body = {"stage": pod.part, "index": pod.index, "completed": done, "total": 1000, "unit": "rows"}
        body |= {"tokens": done * 100, "tokens_per_second": 1234.5, "loss": 1.5, "message": ""}
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        try:
            session = self._session(pod.raw["spec"]["nodeName"])
            async with session.post(url, json=body, headers=headers) as answer:
                self.answers[answer.status] += 1
        except (aiohttp.ClientError, TimeoutError):
            self.answers[0] += 1  # a stage goes on all the same

    def _session(self, node: str) -> aiohttp.ClientSession:
        if node not in self.sessions:
            number = int(node.removeprefix("sim-"))
            connector = aiohttp.TCPConnector(local_addr=(f"127.1.{number // 250}.{number % 250 + 1}", 0), limit=0)
            timeout = aiohttp.ClientTimeout(total=2.0)
            self.sessions[node] = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self.sessions[node]

    async def close(self) -> None:
        """End every connection."""
        for session in self.sessions.values():
            await session.close()


@dataclass
class Bench:
    """The simulated cluster with an operator, and all that is noted of them."""

    server: Server
    record: Record
    kubelet: Kubelet
    posts: Posts
    processes: dict[str, psutil.Process]
    namespaces: list[str]
    draw: random.Random
    seen: dict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    samples: list[Sample] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    """How late the benchmark's own loop was: its watches are read no sooner."""
    made: int = 0

    # ---- what is seen --------------------------------------------------------------------------------------------------

    def changed(self, kind: str, event: str, uid: str, child: Child | None, raw: Object) -> None:
        """An event of a job or a child of it."""
        now, seen = time.monotonic(), self.seen[uid]
        if child is None:
            if self.record.stories[uid].versions == 1:
                seen.moved = now
            return
        if event == "ADDED" and kind in ("Job", "Deployment"):
            seen.reactions.append((child.part, now - seen.moved, now))
        if self._moves(kind, event, child, raw):
            seen.moved, child.moved = now, True

    def _moves(self, kind: str, event: str, child: Child, raw: Object) -> bool:
        """Whether the operator can go on from here: a stage is done, a teacher answers, or the last of its pods is gone."""
        status = raw.get("status", {})
        if kind == "Job":
            return not child.moved and any(
                c["type"] in ("SuccessCriteriaMet", "Complete") for c in status.get("conditions", ())
            )
        if kind == "Deployment":
            return not child.moved and status.get("readyReplicas", 0) > 0
        return kind == "Pod" and event == "DELETED" and child.part.startswith("teacher/")

    # ---- what is done --------------------------------------------------------------------------------------------------

    async def make(self, **spec: Any) -> str:
        """Create a job; its uid."""
        self.made += 1
        document = job_document(**{"stages": five(), "runtimeRef": {"name": "simulated"}, **spec})
        document["spec"]["teacher"]["hosted"]["gpusPerReplica"] = 2
        namespace = self.namespaces[self.made % len(self.namespaces)]
        document["metadata"] = {"name": f"job-{self.made}", "namespace": namespace}
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/distillationjobs"
        status, answer = await self.record.api.ask("POST", path, document)
        if status != 201:
            raise RuntimeError(f"{document['metadata']['name']}: {status} {answer.get('message')}")
        return str(answer["metadata"]["uid"])

    async def load(self, load: Load) -> list[str]:
        """Let jobs arrive, and wait for the end of all; their uids."""
        self.kubelet.default = self._script(load)
        begun, uids = time.monotonic(), list[str]()
        for number in range(load.jobs):
            await asyncio.sleep(max(0.0, begun + number * load.every - time.monotonic()))
            self.record.check()
            uids.append(await self.make())
        for uid in uids:
            story = await self.record.until(uid, ended, "the end of the job", 300)
            if story.phase != "Succeeded":
                raise RuntimeError(f"{story.job['metadata']['name']} has not succeeded: {story.status['conditions']}")
            check(story)
        return uids

    def _script(self, load: Load) -> Any:
        def script(pod: PodMet) -> End | asyncio.Future[End]:
            if pod.part == names.PLAN:
                return End(after=self.draw.uniform(0.5, 1.5))
            long = random.Random(f"{pod.job['metadata']['uid']} {pod.part}").random() < load.long_share
            seconds = load.long_seconds if long else self.draw.uniform(*load.seconds)
            if self.kubelet.failures:
                raise self.kubelet.failures[0]
            return asyncio.ensure_future(self._report(pod, seconds))

        return script

    async def _report(self, pod: PodMet, seconds: float) -> End:
        await self.posts.run(pod, seconds)
        return End()

    async def sample(self) -> None:
        """Note the processes each second, until cancelled."""
        while True:
            self.samples.append(self.look())
            begun = time.monotonic()
            await asyncio.sleep(1.0)
            self.lags.append(time.monotonic() - begun - 1.0)

    def look(self) -> Sample:
        """The processes now."""
        cpu, rss = {}, {}
        for name, process in self.processes.items():
            times = process.cpu_times()
            cpu[name], rss[name] = times.user + times.system, process.memory_info().rss / 1e6
        stories = self.record.stories.values()
        resting = sum(1 for s in stories if not s.gone and (ended(s) or s.condition("Suspended") == "True"))
        return Sample(time.monotonic(), cpu, rss, len(stories) - resting, resting)

    async def idle(self, number: int) -> None:
        """Make jobs that are suspended or have ended, half of each, and wait until the operator has looked at all."""
        if not number:
            return
        pattern = next(story.job for story in self.record.stories.values() if ended(story))
        room = asyncio.Semaphore(8)

        async def one(suspended: bool) -> str:
            async with room:
                uid = await self.make(suspend=True)
                story = await self.record.until(uid, lambda s: s.condition("Suspended") == "True", "suspension", 600)
                if not suspended:
                    await self._end(story, pattern)
                return uid

        uids = await asyncio.gather(*(one(bool(i % 2)) for i in range(number)))
        for uid in uids:
            await self.record.until(uid, lambda s: ended(s) or s.condition("Suspended") == "True", "rest", 600)

    async def _end(self, story: Story, pattern: Object) -> None:
        """Give a job the status of one that has succeeded: a stand-in for running it."""
        metadata = story.job["metadata"]
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{metadata['namespace']}/distillationjobs/{metadata['name']}"
        suspended, status = {"spec": {"suspend": False}}, {"status": pattern["status"]}
        for change, part in ((status, "/status"), (suspended, "")):
            code, answer = await self.record.api.ask("PATCH", path + part, change)
            if code != 200:
                raise RuntimeError(f"{metadata['name']}: {code} {answer.get('message')}")


def five() -> list[Object]:
    """Five stages: generate and capture by two workers, train on two nodes of four GPUs, evaluate, publish."""
    stages = copy.deepcopy(manifests.FULL)
    stages[0]["workers"] = stages[1]["workers"] = 2
    stages[2]["resources"] = {"nodes": 2, "gpusPerNode": 4}
    return stages


def ended(story: Story) -> bool:
    """Whether the job is over."""
    return story.condition("Complete") == "True" or story.condition("Failed") == "True"


# ---- what was found ------------------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted or unsorted values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API server, by its audit log."""

    user: str
    verb: str
    resource: str
    """With its subresource."""
    code: int
    seconds: float
    """That the server took."""

    @classmethod
    def of(cls, line: bytes) -> Request:
        """What a line of the log says."""
        said = json.loads(line)
        what = said.get("objectRef", {})
        resource = "/".join(what[part] for part in ("resource", "subresource") if part in what)
        seconds = _moment(said["stageTimestamp"]) - _moment(said["requestReceivedTimestamp"])
        user, code = said["user"]["username"], said["responseStatus"]["code"]
        return cls(sys.intern(user), sys.intern(said["verb"]), sys.intern(resource or "?"), code, seconds)

    @property
    def counted(self) -> bool:
        """Whether it is a write that a goal counts."""
        return self.verb in WRITES and self.resource.partition("/")[0] not in UNCOUNTED


def audited(path: Path, since: int) -> tuple[list[Request], int]:
    """Requests since an offset of the audit log, and the offset now."""
    found, offset = [], since
    with path.open("rb") as log:
        log.seek(since)
        for line in log:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            found.append(Request.of(line))
    return found, offset


def of_operator(requests: Sequence[Request]) -> list[Request]:
    """The requests of the operator's account."""
    return [request for request in requests if request.user == ACCOUNT]


def progress_writes(stories: Sequence[Story]) -> tuple[int, float]:
    """Status writes for progress alone, and how many there may be: one for each minute that a stage runs, begun ones too."""
    written = allowed = 0
    for story in stories:
        written += story.progress_writes
        for stage in story.status["stages"]:
            times = stage.get("times") or {}
            if times.get("started") and times.get("finished"):
                allowed += math.ceil(max(1.0, (_moment(times["finished"]) - _moment(times["started"])) / 60))
    return written, float(allowed)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def of_load(
    bench: Bench, table: str, uids: Sequence[str], since: Sample, everyone: list[Request]
) -> Iterator[Figure | Goal]:
    """What a load showed."""
    for user, count in Counter(request.user for request in everyone).most_common(6):
        each = {"requests/job": count / len(uids)}
        yield Figure(f"{table}: requests of everyone", user.removeprefix("system:"), each)
    audit, now = of_operator(everyone), bench.samples[-1]
    denied = sum(request.code == 403 for request in audit)
    stories = [bench.record.stories[uid] for uid in uids]
    stages = sum(len(story.status["stages"]) for story in stories)
    reactions = [seconds for uid in uids for _, seconds, _ in bench.seen[uid].reactions]
    parts = defaultdict(list)
    for uid in uids:
        for part, seconds, _ in bench.seen[uid].reactions:
            parts[part].append(seconds)
    writes = sum(request.counted for request in audit)
    progress, allowed = progress_writes(stories)
    lag = quantile(bench.lags[-int(now.at - since.at) :], 0.99)
    yield Figure(
        table,
        "event to child, seconds",
        {"p50": quantile(reactions, 0.5), "p99": quantile(reactions, 0.99), "longest": max(reactions)},
    )
    slow = [moment for uid in uids for _, seconds, moment in bench.seen[uid].reactions if seconds > 1.0]
    windows = {int(moment - since.at) // 10 for moment in slow}
    print(
        f"  {len(slow)} of {len(reactions)} took over 1 s, in {len(windows)} of {int(now.at - since.at) // 10 + 1} spans of 10 s"
    )
    for part, values in parts.items():
        yield Figure(
            table, f"  of {part}", {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "longest": max(values)}
        )
    yield Figure(
        table, "benchmark's own lag", {"p50": quantile(bench.lags, 0.5), "p99": lag, "longest": max(bench.lags)}
    )
    yield Figure(
        f"{table}: requests",
        "operator",
        {
            "requests/job": len(audit) / len(uids),
            "writes/job": writes / len(uids),
            "writes/stage": (writes - progress) / stages,
            "progress writes": progress,
            "denied": denied,
        },
    )
    times = defaultdict(list)
    for request in audit:
        times[f"{request.verb} {request.resource}"].append(request.seconds)
    for asked, took in sorted(times.items(), key=lambda item: -len(item[1]))[:16]:
        cells = {
            "requests/job": len(took) / len(uids),
            "ms p50": quantile(took, 0.5) * 1e3,
            "ms p99": quantile(took, 0.99) * 1e3,
        }
        yield Figure(f"{table}: most asked, and the server's time for it", asked, cells)
    seconds = now.at - since.at
    for name in bench.processes:
        used = now.cpu[name] - since.cpu[name]
        yield Figure(
            f"{table}: processes",
            name,
            {"CPU s/job": used / len(uids), "cores": used / seconds, "MB at the end": now.rss[name]},
        )
    plane = sum(now.cpu[name] - since.cpu[name] for name in OF_CONTROL_PLANE)
    yield Figure(
        f"{table}: processes",
        "control plane",
        {
            "CPU s/job": plane / len(uids),
            "cores": plane / seconds,
            "MB at the end": sum(now.rss[n] for n in OF_CONTROL_PLANE),
        },
    )
    most = max((s for s in bench.samples if s.at >= since.at), key=lambda s: s.rss["operator"] - s.allowed())
    posted = ", ".join(f"{count} x {status}" for status, count in sorted(bench.posts.answers.items()))
    print(f"  progress posts so far: {posted}")
    yield at_most(f"{table}: p99 from event to child, seconds", quantile(reactions, 0.99), 1.0)
    yield at_most(f"{table}: writes a stage", (writes - progress) / stages, 10)
    yield at_most(f"{table}: progress writes for each begun minute of a stage", progress / allowed, 1)
    yield at_most(
        f"{table}: operator's memory, MB, with {most.active} active and {most.resting} resting jobs",
        most.rss["operator"],
        most.allowed(),
    )
    yield at_most(f"{table}: denied requests", float(denied), 0)


async def figures(args: argparse.Namespace, server: Server, keep: Callable[[Results], None]) -> Results:
    """Everything, in this order: the smaller load, the load, then rest; ``keep`` is given what there is after each."""
    found: list[Figure | Goal] = []

    def say(figure: Figure | Goal) -> None:
        found.append(figure)
        if isinstance(figure, Figure):
            if not any(isinstance(f, Figure) and f.table == figure.table for f in found[:-1]):
                print(figure.table)
            print(figure, flush=True)

    home = Path(server.environment["KIT_DIR"])
    audit = home / "log" / "audit.jsonl"
    api = Api(Path(server.environment["KUBECONFIG"]))
    async with api:
        await _ready(api, args.nodes)
        crash(server.environment, "kwok")
        port = _free_port()
        process, started = await _operator(api, server, port)
        processes = {"operator": psutil.Process(process.pid)}
        for name in OF_CONTROL_PLANE:
            processes[name] = psutil.Process(int((home / "run" / f"{name}.pid").read_text()))
        record, kubelet, posts = Record(api), WholeKubelet(api), Posts(api, port)
        namespaces = [f"team-{number}" for number in range(args.namespaces)]
        bench = Bench(server, record, kubelet, posts, processes, namespaces, random.Random(0))
        record.pods, record.noted = kubelet.saw, bench.changed
        for namespace in namespaces:
            await api.ask(
                "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            )
        for namespace in namespaces:
            await _has_account(api, namespace)
        beating = asyncio.ensure_future(heartbeats(api))
        watching, sampling = asyncio.ensure_future(record.run()), asyncio.ensure_future(bench.sample())
        try:
            await asyncio.sleep(3.0)
            say(at_most("start: seconds until the operator leads", started, START_SECONDS))
            say(Figure("At rest", "operator", {"MB": bench.look().rss["operator"]}))
            say(at_most("at rest: operator's memory, MB", bench.look().rss["operator"], AT_REST_MB))
            loads = [
                Load(n, args.every, (args.seconds / 2, args.seconds * 1.5), args.long_share, 130.0)
                for n in (args.compare, args.jobs)
                if n
            ]
            for load in loads:
                _, offset = audited(audit, 0)
                since = bench.look()
                uids = await bench.load(load)
                await asyncio.sleep(1.5)
                label = f"{load.jobs:,} jobs, one each {load.every:g} s"
                for figure in of_load(bench, label, uids, since, audited(audit, offset)[0]):
                    say(figure)
                keep(results(found))
            if args.idle:
                for figure in await _rest(bench, args, audit):
                    say(figure)
            if kubelet.failures:
                raise kubelet.failures[0]
            if process.returncode is not None:
                raise RuntimeError(f"the operator ended with {process.returncode}")
        finally:
            for task in (watching, sampling, beating):
                task.cancel()
            await asyncio.gather(watching, sampling, beating, return_exceptions=True)
            await posts.close()
            if process.returncode is None:
                process.terminate()
                await process.wait()
    return results(found)


def results(found: Sequence[Figure | Goal]) -> Results:
    """What was found, with how and where."""
    figures_of, goals = [f for f in found if isinstance(f, Figure)], [f for f in found if isinstance(f, Goal)]
    return Results(command(), machine(), figures_of, goals)


async def _rest(bench: Bench, args: argparse.Namespace, audit: Path) -> list[Figure | Goal]:
    """Many jobs that only are there."""
    before = bench.look()
    _, offset = audited(audit, 0)
    await bench.idle(args.idle)
    made = bench.look()
    offset = await _still(audit, offset)
    begun = bench.look()
    await asyncio.sleep(args.rest_seconds)
    now = bench.look()
    everyone, _ = audited(audit, offset)
    requests = of_operator(everyone)
    seconds = now.at - begun.at
    table = f"{args.idle} jobs at rest"
    writes = sum(request.counted for request in requests)
    held = (now.rss["operator"] - before.rss["operator"]) * 1000 / args.idle
    return [
        Figure(
            table,
            "operator",
            {
                "MB": now.rss["operator"],
                "KB/job": held,
                "cores": (now.cpu["operator"] - begun.cpu["operator"]) / seconds,
                "requests/s": len(requests) / seconds,
                "writes": writes,
            },
        ),
        Figure(
            f"{table}: made",
            "operator",
            {"CPU s": made.cpu["operator"] - before.cpu["operator"], "seconds": made.at - before.at},
        ),
        Figure(
            f"{table}: control plane",
            "kube-apiserver",
            {
                "MB": now.rss["kube-apiserver"],
                "cores": (now.cpu["kube-apiserver"] - begun.cpu["kube-apiserver"]) / seconds,
            },
        ),
        at_most(f"operator's memory, MB, with {now.resting} jobs at rest", now.rss["operator"], now.allowed()),
        at_most(f"writes in {seconds:.0f} s for {now.resting} jobs at rest", float(writes), 0),
    ]


async def _still(audit: Path, offset: int) -> int:
    """Wait until the operator has written nothing for three seconds: what was just made is looked at once more."""
    for _ in range(40):
        await asyncio.sleep(3)
        requests, offset = audited(audit, offset)
        if not any(request.counted for request in of_operator(requests)):
            return offset
    raise RuntimeError("jobs at rest are written of all the time")


async def _operator(api: Api, server: Server, port: int) -> tuple[asyncio.subprocess.Process, float]:
    """The operator's process with the account and the rights that the chart gives it (the audit log knows its requests), and
    after how many seconds it led."""
    home = Path(server.environment["KIT_DIR"])
    await _apply_rights(server)
    runtime = {**runtime_document(pod=PODS), "metadata": {"name": "simulated"}}
    status, answer = await api.ask("POST", "/apis/kubedistill.io/v1alpha1/clusterdistillationruntimes", runtime)
    if status != 201:
        raise RuntimeError(f"the runtime is refused: {status} {answer.get('message')}")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}}
    _, answer = await api.ask("POST", f"/api/v1/namespaces/{RELEASE}/serviceaccounts/{RELEASE}/token", request)
    config = yaml.safe_load(Path(server.environment["KUBECONFIG"]).read_text())
    config["users"][0]["user"] = {"token": answer["status"]["token"]}
    place = home / "operator.kubeconfig"
    place.write_text(yaml.safe_dump(config))
    words = [
        "--namespace",
        RELEASE,
        "--lease-name",
        RELEASE,
        "--identity",
        "operator-0",
        "--plan-image",
        "plan",
        "--runtime-image",
        "runtime",
    ]
    words += ["--port", str(port), "--progress-url", f"http://127.0.0.1:{port}", "--log-level", "WARNING"]
    environment = {**server.environment, "KUBECONFIG": str(place)}
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "kd_operator", *words, env=environment)
    try:
        await _leads(port)
    except BaseException:
        process.kill()
        raise
    return process, time.monotonic() - begun


async def _apply_rights(server: Server) -> None:
    """The account and the roles of the chart, and nothing else of it: the operator runs outside, to be measured."""
    chart = Path(__file__).parents[1] / "charts" / "kubedistill"
    parts = [word for part in ("serviceaccount", "rbac") for word in ("--show-only", f"templates/{part}.yaml")]
    render = ["helm", "template", RELEASE, str(chart), "--namespace", RELEASE, *parts]
    rendered = subprocess.run(render, env=server.environment, check=True, capture_output=True).stdout
    for words, text in ((["create", "namespace", RELEASE], b""), (["apply", "-f", "-"], rendered)):
        subprocess.run(["kubectl", *words], env=server.environment, check=True, capture_output=True, input=text)


async def _ready(api: Api, nodes: int) -> None:
    """kwok has made the nodes ready; from then on the kubelet here keeps them so."""
    for _ in range(600):
        _, found = await api.ask("GET", "/api/v1/nodes")
        ready = (c["status"] for n in found["items"] for c in n["status"].get("conditions", ()) if c["type"] == "Ready")
        if sum(status == "True" for status in ready) == nodes:
            return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"not all of {nodes} simulated nodes are ready")


async def _has_account(api: Api, namespace: str) -> None:
    """The controller makes each namespace's default account; tokens are asked for it."""
    for _ in range(300):
        status, _ = await api.ask("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
        if status == 200:
            return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"namespace {namespace} has no default ServiceAccount")


async def _leads(port: int) -> None:
    async with aiohttp.ClientSession(trust_env=False) as session:
        for _ in range(600):
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    if await answer.text() == "leading\n":
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError("the operator does not lead")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two jobs")
    parser.add_argument("--compare", type=int, default=100, help="a smaller load that comes first; 0: none")
    parser.add_argument("--idle", type=int, default=5000, help="jobs at rest, half suspended and half ended; 0: none")
    parser.add_argument("--rest-seconds", type=float, default=90.0, help="how long they are watched")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--namespaces", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0, help="that a stage runs, give or take a half")
    parser.add_argument("--long-share", type=float, default=0.02, help="of stages that run for 130 s")
    parser.add_argument("--out", type=Path, default=Path("build/bench-operator"))
    parser.add_argument("--into", type=Path)
    return parser.parse_args(words)


def main() -> int:
    """Measure, write the results, say whether all goals are met."""
    args = parsed()
    print(machine(), flush=True)
    with api_server("--kwok", str(args.nodes)) as server:
        found = asyncio.run(figures(args, server, lambda some: some.write(args.out, args.into)))
    found.write(args.out, args.into)
    print("== goals")
    print(*found.goals, sep="\n")
    print(f"{len(found.goals) - len(found.missed)} of {len(found.goals)} goals are met")
    return 1 if found.missed else 0


if __name__ == "__main__":
    sys.exit(main())
