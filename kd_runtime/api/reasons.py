"""Conditions of a job and the closed list of their reasons, each with what to do."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """The conditions of a DistillationJob."""

    Accepted = "Accepted"
    Planned = "Planned"
    Admitted = "Admitted"
    TeacherReady = "TeacherReady"
    Reconciling = "Reconciling"
    Stalled = "Stalled"
    Suspended = "Suspended"
    Degraded = "Degraded"
    ResourcesReleased = "ResourcesReleased"
    Ready = "Ready"
    Complete = "Complete"
    Failed = "Failed"


class Reason(StrEnum):
    """Why a condition is as it is."""

    Accepted = "Accepted"
    InvalidSpec = "InvalidSpec"
    RuntimeMissing = "RuntimeMissing"
    NotAllowed = "NotAllowed"
    Planning = "Planning"
    Planned = "Planned"
    Queued = "Queued"
    Admitted = "Admitted"
    WaitingForPeer = "WaitingForPeer"
    TeacherStarting = "TeacherStarting"
    TeacherReady = "TeacherReady"
    TeacherStopped = "TeacherStopped"
    Starting = "Starting"
    Running = "Running"
    ImageNotPulled = "ImageNotPulled"
    Unschedulable = "Unschedulable"
    ChildRefused = "ChildRefused"
    PodRefused = "PodRefused"
    PodMisconfigured = "PodMisconfigured"
    PodNotStarting = "PodNotStarting"
    PodNotEnding = "PodNotEnding"
    NodeNotReady = "NodeNotReady"
    PodKept = "PodKept"
    PodForeign = "PodForeign"
    Found = "Found"
    NotNeeded = "NotNeeded"
    Disrupted = "Disrupted"
    Draining = "Draining"
    Backoff = "Backoff"
    Suspended = "Suspended"
    BudgetExceeded = "BudgetExceeded"
    ResourcesReleased = "ResourcesReleased"
    RuntimeDrift = "RuntimeDrift"
    RuntimeChanged = "RuntimeChanged"
    OtherVersion = "OtherVersion"
    Succeeded = "Succeeded"
    BadSettings = "BadSettings"
    BadData = "BadData"
    GateFailed = "GateFailed"
    TeacherUnreachable = "TeacherUnreachable"
    Bug = "Bug"
    AcceleratorOutOfMemory = "AcceleratorOutOfMemory"
    HostOutOfMemory = "HostOutOfMemory"
    ScratchFull = "ScratchFull"
    StorageUnavailable = "StorageUnavailable"
    Denied = "Denied"
    RetriesExhausted = "RetriesExhausted"
    DisruptionsExhausted = "DisruptionsExhausted"
    ResultLost = "ResultLost"
    DeadlineExceeded = "DeadlineExceeded"
    NameConflict = "NameConflict"


REMEDIES: dict[Reason, str] = {
    Reason.Accepted: "Nothing to do: the spec is valid and its runtime allows it.",
    Reason.InvalidSpec: "Correct the field that the message names; `kd lint` shows all of them.",
    Reason.RuntimeMissing: "Create the ClusterDistillationRuntime that runtimeRef names, or annotate one as the default.",
    Reason.NotAllowed: "Use what the runtime's `allowed` and `limits` permit, or ask the platform team to widen them.",
    Reason.Planning: "Wait: the plan pod resolves URIs and probes every endpoint.",
    Reason.Planned: "Nothing to do: the plan's digest and estimate are in the status.",
    Reason.Queued: "Wait for the queue or the scheduler; `kubectl describe pod` says what is short.",
    Reason.Admitted: "Nothing to do: the job may start pods.",
    Reason.WaitingForPeer: "Wait: another job of the namespace is making the same artifact, which this one will find.",
    Reason.TeacherStarting: "Wait up to startupTimeoutSeconds; the teacher's log says how far it is.",
    Reason.TeacherReady: "Nothing to do: the teacher has answered a prompt.",
    Reason.TeacherStopped: "Nothing to do: no stage asks the teacher now.",
    Reason.Starting: "Wait: the stage's pods are scheduled and started.",
    Reason.Running: "Nothing to do: a stage is at work.",
    Reason.ImageNotPulled: "Correct the runtime's images or imagePullSecrets; the message names the image.",
    Reason.Unschedulable: "Free or add nodes that fit, or change resources, nodeSelector or tolerations; the message is the scheduler's.",
    Reason.ChildRefused: "Do what the message says: raise the ResourceQuota that it names, satisfy the webhook, or see the LimitRange.",
    Reason.PodRefused: "`kubectl describe job` of the named child says which ResourceQuota or admission rule refuses its pods.",
    Reason.PodMisconfigured: "Create the Secret, ConfigMap or claim that the message names.",
    Reason.PodNotStarting: "`kubectl describe pod` of the named pod says what its node waits for: mostly a volume or a large image.",
    Reason.PodNotEnding: "Look at the node; once nothing of the named pod runs there, `kubectl delete pod --force` frees its place.",
    Reason.NodeNotReady: "Look at the node that the message names; its pods go on when it comes back, or are started anew, free of charge.",
    Reason.PodKept: "Turn that sidecar off for pods of jobs, by annotations in the runtime's spec.pod; the message names the container.",
    Reason.PodForeign: "Remove the label kubedistill.io/job-uid from the pod that the message names, or delete that pod.",
    Reason.Found: "Nothing to do: the stage's artifact was in the store already.",
    Reason.NotNeeded: "Nothing to do: all that would read the stage's artifact is in the store already.",
    Reason.Disrupted: "Nothing to do: it is tried again, free of charge. Where it repeats, look at the node that lastFailure names.",
    Reason.Draining: "Wait: training writes a checkpoint before its pods go.",
    Reason.Backoff: "Wait for the next attempt, or look at lastFailure of the stage.",
    Reason.Suspended: "Set spec.suspend to false to go on.",
    Reason.BudgetExceeded: "Raise spec.budget.maxGPUHours to go on.",
    Reason.ResourcesReleased: "Nothing to do: no pod of the job is left.",
    Reason.RuntimeDrift: "Nothing to do: the job keeps the runtime it began with; new jobs take the new one.",
    Reason.RuntimeChanged: "Create the job anew: its stored settings were deleted and the runtime has changed since.",
    Reason.OtherVersion: "Upgrade the operator to the version that wrote the job's settings; its pods run on meanwhile.",
    Reason.Succeeded: "Nothing to do: the artifacts are named in the status.",
    Reason.BadSettings: "Change the setting that the message names and create the job under another name.",
    Reason.BadData: "Correct the file and line that the message names; `kd rejects list` shows rejected rows.",
    Reason.GateFailed: "Read the report: the student does not reach a gate. Train longer, or lower the gate.",
    Reason.TeacherUnreachable: "Look at the teacher's log or the endpoint's status page; raise outageTimeoutSeconds.",
    Reason.Bug: "Where the message says poison, correct or take out the rows that it names, and create the job under another "
    "name. Otherwise report it with the message and `kubectl kd report`; the stage's log has the traceback.",
    Reason.AcceleratorOutOfMemory: "Lower microBatchSize, maxLength or maxNumBatchedTokens, or raise zeroStage.",
    Reason.HostOutOfMemory: "Raise the memory that the message names.",
    Reason.ScratchFull: "Raise scratch.size of the pods in the runtime's spec.pod, or give their scratch a storage class.",
    Reason.StorageUnavailable: "Look at the object store. It is tried again by itself; once no try is left, annotate kubedistill.io/retry.",
    Reason.Denied: "Correct the Secret or the rights that the message names.",
    Reason.RetriesExhausted: "Look at lastFailure; annotate kubedistill.io/retry to try once more.",
    Reason.DisruptionsExhausted: "Mend the node that the message names, use others, or raise failurePolicy.disruptionLimit.",
    Reason.ResultLost: "Look at the node: pods ended without a result. After three in a row, annotate kubedistill.io/retry.",
    Reason.DeadlineExceeded: "Annotate kubedistill.io/retry, which starts the deadline anew, or create the job under another name with a "
    "longer one.",
    Reason.NameConflict: "Delete or rename the object that has the child's name and another owner.",
}
"""What to do about each reason; docs/api.md lists them."""
