"""Jobs of one namespace that would make the same artifact: one makes it, the others wait and find it (contract 12; pure)."""

from __future__ import annotations

from kd_operator.decide.draft import Draft
from kd_operator.observed import PeerSeen, version_of


def peer_at_work(d: Draft, key: str | None) -> PeerSeen | None:
    """A job that has claimed the key: asked before a claim of our own."""
    claiming = [peer for peer in d.seen.peers or () if key is not None and key in peer.claimed]
    return min(claiming, key=_age) if claiming else None


def earlier_peer(d: Draft, key: str | None) -> PeerSeen | None:
    """A job that has claimed the key too and keeps it: asked after a claim, before any child of it.

    Whose claim was written first keeps it, by resourceVersion: the other's list of peers, made after its own claim, cannot
    miss that one, whereas the first may have listed before there was another. Age would not do: an older job that claims
    second would go on beside a younger that has not seen it. One that has begun goes on in any case.
    """
    begun = [peer for peer in d.seen.peers or () if key is not None and key in peer.begun]
    if begun:
        return min(begun, key=_age)
    job = d.seen.job
    mine = (version_of(job.resource_version), job.created, job.uid)
    claimed = [peer for peer in d.seen.peers or () if key is not None and key in peer.claimed]
    return next((peer for peer in sorted(claimed, key=_order) if _order(peer) < mine), None)


def _order(peer: PeerSeen) -> tuple[int, object, str]:
    return peer.version, peer.created, peer.uid


def _age(peer: PeerSeen) -> tuple[object, str]:
    return peer.created, peer.uid
