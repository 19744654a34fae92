"""Labels and annotations by which the operator, its pods and `kubectl kd` know each other's objects."""

from __future__ import annotations

from kd_runtime.api.model import GROUP

JOB_LABEL = f"{GROUP}/job"
UID_LABEL = f"{GROUP}/job-uid"
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
COMPONENT_LABEL = f"{GROUP}/component"
RETRY_ANNOTATION = f"{GROUP}/retry"
RECONCILE_ANNOTATION = f"{GROUP}/reconcile"
DEFAULT_RUNTIME_ANNOTATION = f"{GROUP}/is-default-runtime"
