"""Cheap before dear (contract 9): what can be known to fail without a GPU is found before anything starts."""

from __future__ import annotations

import secrets

import httpx

from kd_runtime.api.failures import DeniedError, SettingsError, StorageError, TeacherError
from kd_runtime.api.job import DistillationJobSpec, ExternalTeacher
from kd_runtime.artifacts.store import Store
from kd_runtime.planning.fetch import secret_token, secret_variable
from kd_runtime.planning.plan import Plan, StageType
from kd_runtime.planning.resolve import teacher_named
from kd_runtime.planning.sources import open_model
from kd_runtime.planning.tokenizers import tokenizer_digest_of

PROBE_TIMEOUT_SECONDS = 20.0


def probe_store(store: Store) -> str | None:
    """Write, read back and delete one small object; a warning where the store has no conditional writes.

    Raises:
        DeniedError, StorageError: the store cannot be written or read; the message names it.
    """
    name = f"probes/{secrets.token_hex(8)}"
    store.put(name, b"probe", if_absent=True)
    if store.get(name) != b"probe":
        raise StorageError(
            f"spec.artifacts.uri: {store.uri} gave back other bytes than were written; use another store"
        )
    store.delete(name)
    if store.refuses_overwriting():
        return None
    return (
        f"spec.artifacts.uri: {store.uri} has no conditional writes (If-None-Match), so two runs that commit the same stage at "
        "the same moment may both go on; the later one's artifact stays, and what was made of the other is made again. "
        "Let one run at a time use it, or use a store that has them"
    )


def missing_secrets(spec: DistillationJobSpec, environment: dict[str, str]) -> list[str]:
    """A sentence for each secretRef whose environment variable is not set (locally, Secrets are variables)."""
    asked: list[tuple[str, str]] = []
    for label, reference in _references(spec):
        variable = secret_variable(f"{reference.name}/{reference.key}")
        if not environment.get(variable):
            asked.append((label, variable))
    return [
        f"{label}: environment variable {variable} is not set; export it before running locally"
        for label, variable in asked
    ]


def _references(spec: DistillationJobSpec):  # type: ignore[no-untyped-def]
    teachers = [("spec.teacher", spec.teacher)] if spec.teacher else []
    teachers += [(f"spec.teachers[{i}]", t) for i, t in enumerate(spec.teachers or ())]
    for path, teacher in teachers:
        if teacher.external is not None and teacher.external.api_key_secret_ref is not None:
            yield f"{path}.external.apiKeySecretRef", teacher.external.api_key_secret_ref
        if teacher.hosted is not None and teacher.hosted.model.secret_ref is not None:
            yield f"{path}.hosted.model.secretRef", teacher.hosted.model.secret_ref
    if spec.student.model.secret_ref is not None:
        yield "spec.student.model.secretRef", spec.student.model.secret_ref
    if spec.dataset.secret_ref is not None:
        yield "spec.dataset.secretRef", spec.dataset.secret_ref


def api_key(teacher: ExternalTeacher) -> str | None:
    """The external teacher's key, from its Secret's environment variable."""
    reference = teacher.api_key_secret_ref
    return secret_token(f"{reference.name}/{reference.key}") if reference else None


def probe_teachers(plan: Plan) -> None:
    """Ask every external teacher that a stage asks for its list of models.

    Raises:
        TeacherError: it does not answer. DeniedError: it refuses the key. SettingsError: it does not serve the model.
    """
    seen: set[str] = set()
    for stage in plan.stages:
        if stage.teacher is None or stage.teacher in seen:
            continue
        seen.add(stage.teacher)
        _, teacher = teacher_named(plan.spec, stage.teacher)
        if teacher.external is not None:
            _probe_teacher(teacher.external)


def _probe_teacher(teacher: ExternalTeacher) -> None:
    url = f"{teacher.base_url.rstrip('/')}/models"
    key = api_key(teacher)
    try:
        answer = httpx.get(
            url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=PROBE_TIMEOUT_SECONDS
        )
    except httpx.HTTPError as error:
        raise TeacherError(
            f"external.baseURL: {teacher.base_url} does not answer ({type(error).__name__}); check the address"
        ) from error
    if answer.status_code in (401, 403):
        raise DeniedError(
            f"external.apiKeySecretRef: {url} answers {answer.status_code}; the key is wrong or missing, check the Secret"
        )
    if answer.status_code == 404:
        return
    if answer.status_code >= 400:
        raise TeacherError(
            f"external.baseURL: {url} answers {answer.status_code}; check the address, or try again later"
        )
    try:
        served = [str(model["id"]) for model in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return
    if served and teacher.model not in served:
        raise SettingsError(
            f"external.model: {teacher.model!r} is not served at {teacher.base_url}; it serves {', '.join(served[:8])}"
        )


def probe_tokenizers(plan: Plan) -> None:
    """A teacher whose logits are captured must share the student's tokenizer.

    Raises:
        SettingsError: it has another; both digests are named.
    """
    s3 = {"endpoint": plan.spec.artifacts.endpoint, "region": plan.spec.artifacts.region}
    student = plan.stage("dataset").externals["tokenizer"]
    for stage in plan.stages:
        teacher = stage.externals.get("teacher")
        if stage.type is not StageType.Capture or teacher is None or not teacher.files:
            continue
        mine, theirs = (
            tokenizer_digest_of(open_model(e.uri, revision=e.revision, token=secret_token(e.secret), **s3))
            for e in (student, teacher)
        )
        if mine != theirs:
            raise SettingsError(
                f"stage {stage.name}: the teacher {teacher.uri} has another tokenizer ({theirs[:12]}) than the student "
                f"{student.uri} ({mine[:12]}), so its logits are over other tokens; "
                "use a teacher of the student's family, or train by SFT on its answers"
            )


def probe_memory(plan: Plan, needed: dict[str, int], available: int) -> None:
    """Refuse a stage that needs more memory than the machine has.

    Raises:
        SettingsError: names the stage, what it needs and what there is.
    """
    for name, amount in needed.items():
        if amount > available:
            raise SettingsError(
                f"stage {name}: needs about {amount / 2**30:.1f} GiB of memory and this machine has {available / 2**30:.1f} GiB; "
                "use a smaller model, a smaller microBatchSize or maxLength, or a larger machine"
            )
