"""The template and tokenizer that a job's rows are rendered with: the student's, or the user's own template."""

from __future__ import annotations

from kd_runtime.api.dataset import Reasoning
from kd_runtime.api.failures import SettingsError
from kd_runtime.models.reasoning import END_THINK, THINK
from kd_runtime.models.templates import Template
from kd_runtime.stages.context import StageContext


def template_of(ctx: StageContext) -> Template:
    """The template of a stage whose externals hold ``tokenizer`` and, where ``spec.dataset.template`` is set, ``template``.

    Raises:
        SettingsError: it fails on the simplest conversation, or loses the reasoning that is to be kept.
        StorageError, DeniedError, DataError: it cannot be read, or changed since the plan was made.
    """
    template = Template(ctx.external_dir("tokenizer"), _override(ctx))
    if ctx.plan.spec.dataset.reasoning is Reasoning.Keep and not template.renders_content_with_reasoning:
        raise SettingsError(
            f"spec.dataset.reasoning: Keep, but {template.name} leaves out what an answer holds in {THINK}…{END_THINK}; "
            "set reasoning to Strip, or name a template that renders it in spec.dataset.template"
        )
    return template


def _override(ctx: StageContext) -> str | None:
    if not ctx.has("template"):
        return None
    return (ctx.external_dir("template") / ctx.external("template").files[0].path).read_text(encoding="utf-8")
