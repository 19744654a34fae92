"""Lineage and losses as plain data, for the report and the model card: what was made from what, and which rows went where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rejects import Reject, read_rejects, reasons
from kd_runtime.evaluation.graph import Edge, Node
from kd_runtime.evaluation.sources import Sources, external_place, short_digest, short_uri
from kd_runtime.planning.plan import External, PlannedStage, StageType

EXAMPLES = 3
TRAIN_LEFT_OUT = {
    "truncated": "answer cut off at maxTokens, left out of training",
    "rejected": "rejected when the teacher scored it",
    "withoutTarget": "no scored token within maxLength",
}
"""Counts of a train stage that stand for rows it leaves out, with what the report says."""


@dataclass(frozen=True)
class Loss:
    """Rows that one stage lost for one reason."""

    reason: str
    rows: int
    examples: tuple[str, ...] = ()
    """A few of them: where the row came from, and the detail."""


@dataclass(frozen=True)
class StageRows:
    """What one stage did with its rows; numbers are of (row, sample) pairs where the stage samples."""

    stage: str
    type: StageType
    came: int | None
    done: int | None
    rejected: int | None
    out: int | None
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class StageCost:
    """What one stage took: tokens, bytes written, seconds."""

    stage: str
    type: StageType
    tokens: int | None
    bytes: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)


def row_losses(sources: Sources) -> list[StageRows]:
    """Every stage that counts rows, with its losses by reason."""
    return [
        _stage_rows(sources, stage, manifest)
        for stage, manifest in sources.done()
        if stage.type not in (StageType.Publish, StageType.Evaluate) and "in" in manifest.counts
    ]


def _stage_rows(sources: Sources, stage: PlannedStage, manifest: Manifest) -> StageRows:
    counts = manifest.counts
    losses = _rejects(sources, manifest)
    if stage.type is StageType.Train:
        losses += [Loss(text, counts[name]) for name, text in TRAIN_LEFT_OUT.items() if counts.get(name)]
    elif counts.get("rejected") and not losses:
        losses = [Loss("rejected", counts["rejected"])]
    if stage.type in (StageType.Ingest, StageType.Generate) and counts.get("done", 0) > counts.get("out", 0):
        losses.append(Loss("equal to an earlier row: stored once, trained on as often", counts["done"] - counts["out"]))
    rejected = counts.get("leftOut") if stage.type is StageType.Train else counts.get("rejected")
    out = counts.get("out", counts.get("done"))
    return StageRows(stage.name, stage.type, counts["in"], counts.get("done"), rejected, out, tuple(losses))


def _rejects(sources: Sources, manifest: Manifest) -> list[Loss]:
    """Rejected rows by reason, the commonest first."""
    if not sources.has(manifest, "rejects.jsonl"):
        return []
    rejects = read_rejects(sources.store, manifest)
    return [Loss(reason, number, _examples(rejects, reason)) for reason, number in reasons(rejects).items()]


def _examples(rejects: Sequence[Reject], reason: str) -> tuple[str, ...]:
    """A few rejects of one reason: where they came from, and what was wrong."""
    few = [r for r in rejects if r.reason == reason][:EXAMPLES]
    return tuple(f"{r.source or r.row}: {r.detail}" if r.detail else r.source or r.row for r in few)


def stage_costs(sources: Sources) -> list[StageCost]:
    """Tokens, bytes and seconds of every stage that has an artifact."""
    return [
        StageCost(
            stage.name,
            stage.type,
            stage_tokens(stage, manifest),
            sum(ref.size for ref in manifest.objects),
            manifest.seconds,
            dict(manifest.counts),
        )
        for stage, manifest in sources.done()
    ]


TOKENS: dict[StageType, tuple[str, str]] = {
    StageType.Ingest: ("tokens", "tokenised"),
    StageType.Generate: ("completionTokens", "generated"),
    StageType.Capture: ("tokens", "read by the teacher"),
    StageType.Train: ("tokens", "trained on"),
    StageType.Evaluate: ("tokens", "scored and answered"),
}
"""Which count of a stage is the tokens that it worked on, and what it did with them."""


def stage_tokens(stage: PlannedStage, manifest: Manifest) -> int | None:
    """Tokens that a stage worked on, from its counts; None where it does not count them."""
    return manifest.counts.get(TOKENS.get(stage.type, ("tokens", ""))[0])


def lineage_graph(sources: Sources) -> tuple[list[Node], list[Edge]]:
    """Externals and stages as boxes, inputs as edges; stages without an artifact are drawn as still to make."""
    nodes: list[Node] = []
    edges: list[Edge] = []
    for roles, external in sources.externals():
        nodes.append(_external_node(roles, external))
    for stage in sources.plan.stages:
        nodes.append(_stage_node(stage, sources.manifests.get(stage.name)))
        edges += [Edge(external_place(external), stage.name, role) for role, external in stage.externals.items()]
        edges += [Edge(source, stage.name, role) for role, source in stage.inputs.items()]
    return nodes, edges


def _external_node(roles: str, external: External) -> Node:
    return Node(
        external_place(external),
        short_uri(external.uri),
        (roles, f"sha256 {short_digest(external.digest)}"),
        "external",
        f"{external.uri}\nrevision {external.revision or '–'}\ndigest {external.digest}",
    )


def _stage_node(stage: PlannedStage, manifest: Manifest | None) -> Node:
    content = f"content {short_digest(manifest.content_digest)}" if manifest else "not made yet"
    return Node(
        stage.name,
        f"{stage.name} · {stage.type}" if stage.name != stage.type else stage.name,
        (f"key {short_digest(stage.key)}", content),
        f"stage {'done' if manifest else 'todo'}",
        f"{stage.name} ({stage.type})\nkey {stage.key}\ncontent digest {manifest.content_digest if manifest else '–'}",
    )


def describe_inputs(stage: PlannedStage) -> str:
    """``rows answers, logits logits, model SmolLM2 (outside)`` of one stage."""
    parts: Sequence[str] = [f"{role.partition('.')[0]}: {source}" for role, source in stage.inputs.items()]
    outside = [f"{role}: {short_uri(external.uri)}" for role, external in stage.externals.items()]
    return ", ".join([*parts, *outside]) or "–"
