"""The template and tokenizer that a job's rows are rendered with: the student's, or the user's own template."""

from __future__ import annotations

from kd_runtime.models.templates import Template
from kd_runtime.stages.context import StageContext


def template_of(ctx: StageContext) -> Template:
    """The template of a stage whose externals hold ``tokenizer`` and, where ``spec.dataset.template`` is set, ``template``.

    Raises:
        SettingsError: it fails on the simplest conversation.
        StorageError, DeniedError, DataError: it cannot be read, or changed since the plan was made.
    """
    return Template(ctx.external_dir("tokenizer"), _override(ctx))


def _override(ctx: StageContext) -> str | None:
    if not ctx.has("template"):
        return None
    return (ctx.external_dir("template") / ctx.external("template").files[0].path).read_text(encoding="utf-8")
