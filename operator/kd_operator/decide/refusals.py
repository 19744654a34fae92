"""Children that the API server refuses to make: in which words, and what to do about it (pure)."""

from __future__ import annotations

from kd_operator.decide.draft import MESSAGE_LENGTH, Draft, shortened
from kd_operator.status.conditions import Said
from kd_runtime.api.reasons import Reason

REMEDIES = {
    "exceeded quota": "raise that ResourceQuota of the namespace, or delete what uses it up",
    "must specify": "have the runtime's pod resources say it, or the namespace's LimitRange",
    "per Container": "ask for what the namespace's LimitRange permits",
    "calling webhook": "mend that webhook, or exempt the namespace from it",
    "admission webhook": "do what the webhook asks for, or exempt the namespace from it",
    "ValidatingAdmissionPolicy": "do what the policy asks for, or exempt the namespace from it",
    "violates PodSecurity": "run it in a namespace that this Pod Security level permits",
}
"""By what the API server says: of a quota, of limits, of whoever else is asked."""
OTHERWISE = "see the namespace's ResourceQuota and LimitRange, its admission rules, and the operator's own rights"


def tell_refusals(d: Draft) -> None:
    """The job's trouble, where a child that is to be made was refused when last tried: until it is there."""
    for creation in d.create:
        words = d.seen.refused.get(creation.child)
        if words is None:
            continue
        words = f"{creation.child.replace('/', ' ')} is refused: {words}"
        message = f"{shortened(words, MESSAGE_LENGTH - 320)}; {remedy(words)}"
        d.facts.trouble = Said(Reason.ChildRefused, message)
        part = creation.claim.part
        if part and d.run(part).child_uid is None:
            d.set(part, reason=Reason.ChildRefused, message=message)
        return


def remedy(words: str) -> str:
    """What to do about a refusal."""
    return next((what for said, what in REMEDIES.items() if said in words), OTHERWISE)
