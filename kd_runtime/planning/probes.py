"""Cheap before dear (contract 9): what can be known to fail without a GPU is found before anything starts."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping

import httpx

from kd_runtime.api.failures import DataError, DeniedError, SettingsError, StorageError, TeacherError
from kd_runtime.api.job import DistillationJobSpec, ExternalTeacher, NamedTeacher, SecretReference, Teacher
from kd_runtime.api.secret_variables import secret_variable
from kd_runtime.api.teacher import SCORE_PATH
from kd_runtime.artifacts.store import Store
from kd_runtime.outbound.addresses import guard_of
from kd_runtime.outbound.http import guard_client
from kd_runtime.planning.fetch import secret_token
from kd_runtime.planning.plan import External, Plan, StageType
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


def _teachers(spec: DistillationJobSpec) -> Iterator[tuple[str, Teacher | NamedTeacher]]:
    """Every teacher with its path."""
    if spec.teacher is not None:
        yield "spec.teacher", spec.teacher
    for number, teacher in enumerate(spec.teachers or ()):
        yield f"spec.teachers[{number}]", teacher


def _references(spec: DistillationJobSpec) -> Iterator[tuple[str, SecretReference]]:
    for path, teacher in _teachers(spec):
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
        TeacherError: it does not answer. DeniedError: it refuses the key. SettingsError: it does not serve the model,
        redirects, or its address is not allowed.
    """
    seen: set[str] = set()
    for stage in plan.stages:
        if stage.teacher is None or stage.teacher in seen:
            continue
        seen.add(stage.teacher)
        _, teacher = teacher_named(plan.spec, stage.teacher)
        if teacher.external is not None:
            path = next(path for path, each in _teachers(plan.spec) if each == teacher)
            _probe_teacher(f"{path}.external", teacher.external)


def _probe_teacher(path: str, teacher: ExternalTeacher) -> None:
    answer = _asked(path, teacher, f"{teacher.base_url.rstrip('/')}/models")
    try:
        served = [str(model["id"]) for model in answer.json()["data"]] if answer.is_success else []
    except (ValueError, KeyError, TypeError):
        return
    if served and teacher.model not in served:
        raise SettingsError(
            f"{path}.model: {teacher.model!r} is not served at {teacher.base_url}; it serves {', '.join(served[:8])}"
        )


def _asked(path: str, teacher: ExternalTeacher, url: str) -> httpx.Response:
    """What the teacher answers to ``GET url``: a success, or that it has no such route."""
    key = api_key(teacher)
    try:
        with guard_client(httpx.Client(timeout=PROBE_TIMEOUT_SECONDS), guard_of(f"{path}.baseURL")) as client:
            answer = client.get(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    except httpx.HTTPError as error:
        raise TeacherError(
            f"{path}.baseURL: {teacher.base_url} does not answer ({type(error).__name__}); check the address, or start it"
        ) from error
    code = answer.status_code
    if code in (401, 403):
        raise DeniedError(
            f"{path}.apiKeySecretRef: {_said(teacher)} is refused by {url} ({code}); put a valid key there"
        )
    if 300 <= code < 400:
        raise SettingsError(
            f"{path}.baseURL: {url} redirects to {answer.headers.get('location')}, which is not followed; "
            "give the address that answers"
        )
    if code >= 400 and code not in (404, 405):
        raise TeacherError(f"{path}.baseURL: {url} answers {code}; check the address, or try again later")
    return answer


def _said(teacher: ExternalTeacher) -> str:
    """Where the key came from; never the key."""
    reference = teacher.api_key_secret_ref
    return f"the key of Secret {reference.name}/{reference.key}" if reference else "a request without a key"


def probe_tokenizers(plan: Plan) -> None:
    """A teacher whose logits are captured must share the student's tokenizer.

    Raises:
        SettingsError: it has another; both digests are named.
    """
    student = plan.stage("dataset").externals["tokenizer"]
    for stage in plan.stages:
        teacher = stage.externals.get("teacher")
        if stage.type is StageType.Capture and teacher is not None and teacher.files:
            _check_tokenizers(
                stage.name, teacher.uri, _digest_of(plan, teacher), student.uri, _digest_of(plan, student)
            )


def probe_score_routes(plan: Plan, running: Collection[str]) -> None:
    """The same of external teachers, whose files nobody sees: those that the capture stages ``running`` will ask say it.

    Raises:
        SettingsError: one has another tokenizer, or no score route that tells. TeacherError, DeniedError: as `probe_teachers`.
    """
    student = plan.stage("dataset").externals["tokenizer"]
    for stage in plan.stages:
        if stage.type is not StageType.Capture or stage.name not in running or stage.teacher is None:
            continue
        _, teacher = teacher_named(plan.spec, stage.teacher)
        if teacher.external is not None:
            path = next(path for path, each in _teachers(plan.spec) if each == teacher)
            theirs = _tokenizer_of(f"{path}.external", teacher.external)
            _check_tokenizers(stage.name, teacher.external.base_url, theirs, student.uri, _digest_of(plan, student))


def _tokenizer_of(path: str, teacher: ExternalTeacher) -> str:
    """The digest of the tokenizer that a teacher of protocol KD says it has."""
    url = f"{teacher.base_url.rstrip('/').removesuffix('/v1')}{SCORE_PATH}"
    answer = _asked(path, teacher, url)
    try:
        digest = answer.json()["tokenizer"] if answer.is_success else None
    except (ValueError, KeyError, TypeError):
        digest = None
    if not isinstance(digest, str):
        raise SettingsError(
            f"{path}.protocol: {url} ({answer.status_code}) does not say which tokenizer its teacher has, so its logits may be "
            "over other tokens; serve it with this version's `kd teacher serve`, or train by SFT on its answers"
        )
    return digest


def _digest_of(plan: Plan, model: External) -> str:
    s3 = {"endpoint": plan.spec.artifacts.endpoint, "region": plan.spec.artifacts.region}
    return tokenizer_digest_of(open_model(model.uri, revision=model.revision, token=secret_token(model.secret), **s3))


def _check_tokenizers(stage: str, teacher: str, theirs: str, student: str, mine: str) -> None:
    if mine != theirs:
        raise SettingsError(
            f"stage {stage}: the teacher {teacher} has another tokenizer ({theirs[:12]}) than the student "
            f"{student} ({mine[:12]}), so its logits are over other tokens; "
            "use a teacher of the student's family, or train by SFT on its answers"
        )


def probe_held_out(plan: Plan, counts: Mapping[str, int]) -> None:
    """An evaluation needs rows that are held out; ``counts`` are ingest's.

    Raises:
        DataError: a stage evaluates, and no row fell on that side.
    """
    evaluations = [stage.name for stage in plan.stages if stage.type is StageType.Evaluate]
    if evaluations and not counts["heldOut"]:
        raise DataError(
            f"spec.dataset.holdout.fraction: {plan.spec.dataset.holdout.fraction:g} of {counts['out']} rows holds none out, "
            f"and stage {evaluations[0]} evaluates on held-out rows; raise it, give more rows, or leave the stage out"
        )


def probe_memory(plan: Plan, needed: dict[str, int], available: int) -> None:
    """Refuse a stage that needs more memory than ``available``, what its process may use.

    Raises:
        SettingsError: names the stage and its model, what it needs and what there is.
    """
    for name, amount in needed.items():
        if amount > available:
            externals = plan.stage(name).externals
            model = next((externals[role].uri for role in ("teacher", "model") if role in externals), "")
            remedies = "a smaller model, or a larger machine"
            if plan.stage(name).type is StageType.Train:
                remedies = "a smaller model, a smaller microBatchSize or maxLength, or a larger machine"
            raise SettingsError(
                f"stage {name}: needs about {amount / 2**30:,.1f} GiB of memory{f' for {model}' if model else ''} and can have "
                f"{available / 2**30:,.1f} GiB; use {remedies}"
            )
