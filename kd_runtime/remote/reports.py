"""`kubectl kd report`: a job's HTML report, read from its store with the credentials of whoever asks."""

from __future__ import annotations

import os
import tempfile
import webbrowser
from pathlib import Path

from kd_runtime.api.failures import DeniedError, SettingsError
from kd_runtime.artifacts.store import Missing, Store, open_store
from kd_runtime.remote.jobs import RemoteJob


def report_name(job: RemoteJob) -> str:
    """The report's name in the store. Raises SettingsError where the job has no plan yet."""
    digest = job.status.plan.digest if job.status.plan else None
    if not digest:
        raise SettingsError(f"{job.name} has no plan yet, so no report; `kubectl kd explain {job.name}` says why")
    return f"reports/{digest}.html"


def fetch_report(store: Store, job: RemoteJob) -> bytes:
    """The HTML.

    Raises:
        SettingsError: it is not written yet.
        DeniedError, StorageError: the store, which is asked with the usual AWS credentials.
    """
    name = report_name(job)
    try:
        return store.get(name)
    except Missing:
        when = "the last stage writes it" if not job.ended else "the job ended before a stage wrote it"
        raise SettingsError(
            f"{store.uri}{name}: is not there; {when}. `kubectl kd watch {job.name}` shows how far it is"
        ) from None
    except DeniedError as denied:
        raise DeniedError(
            f"{denied} (your own AWS credentials are used: AWS_PROFILE, AWS_ACCESS_KEY_ID, …; not the job's Secret)"
        ) from None


def job_store(job: RemoteJob, endpoint: str | None = None) -> Store:
    """The job's store, opened with the caller's credentials. ``endpoint``: how this machine reaches it, where that differs."""
    artifacts = job.spec["artifacts"]
    return open_store(artifacts["uri"], endpoint=endpoint or artifacts.get("endpoint"), region=artifacts.get("region"))


def keep_report(html: bytes, job: RemoteJob, output: Path | None) -> Path:
    """Write the report to ``output``, else to a new file of this user's own."""
    if output is not None:
        output.write_bytes(html)
        return output
    handle, path = tempfile.mkstemp(prefix=f"kd-{job.name}-", suffix=".html")
    with os.fdopen(handle, "wb") as file:
        file.write(html)
    return Path(path)


def open_in_browser(path: Path) -> bool:
    """Show the file; False where this machine has no browser."""
    try:
        return webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        return False
