"""Jobs of one namespace that would make the same artifact: one makes it, the others wait and find it (contract 12; pure)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kd_operator.decide.draft import Draft
from kd_operator.observed import PeerSeen


def peer_at_work(d: Draft, key: str | None) -> PeerSeen | None:
    """A job that has claimed the key. Nobody claims it beside that one, nor creates a child of a claim of its own."""
    return _oldest(_claiming(d, key))


def peer_ahead(d: Draft, key: str | None) -> PeerSeen | None:
    """A job to which the key is left although it was claimed: asked after a claim, before any child of it.

    Two jobs may claim in the same moment. The one that writes second cannot miss the first, as its list of peers is made after
    its own claim; the first may have listed before there was a second, and go on. Neither can tell which of them it is: a job's
    resourceVersion grows with whatever is written to it. So nobody goes on beside a claim that it sees. The younger withdraws,
    and so does who sees that the other has begun; the older keeps its claim, and waits until the other has done one or the other.
    """
    me = (d.seen.job.created, d.seen.job.uid)
    return _oldest(peer for peer in _claiming(d, key) if key in peer.begun or _age(peer) < me)


def _claiming(d: Draft, key: str | None) -> list[PeerSeen]:
    return [peer for peer in d.seen.peers or () if key is not None and key in peer.claimed]


def _oldest(peers: Iterable[PeerSeen]) -> PeerSeen | None:
    return min(peers, key=_age, default=None)


def _age(peer: PeerSeen) -> tuple[datetime, str]:
    return peer.created, peer.uid
