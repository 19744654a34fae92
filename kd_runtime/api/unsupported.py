"""What this version does not act on: refused by path, never passed over in silence (contract 14).

The commit that builds a feature deletes its line here.
"""

from __future__ import annotations

from kd_runtime.api.dataset import Dataset
from kd_runtime.api.job import DistillationJobSpec
from kd_runtime.api.model import Model, ModelSource, Rule
from kd_runtime.api.operation import Scheduling
from kd_runtime.api.outcome_stages import Suite, Target
from kd_runtime.api.runtime_pods import ReportCredentials
from kd_runtime.api.stage import Stage
from kd_runtime.api.train import Train

_THIS_VERSION = "is not supported by this version"


def _absent(field: str, remedy: str) -> Rule:
    return Rule(f"!has(self.{field})", f"{_THIS_VERSION}; {remedy}", field)


def _only(field: str, *values: str, remedy: str = "") -> Rule:
    allowed = " || ".join(f"self.{field} == '{value}'" for value in values)
    return Rule(f"!has(self.{field}) || {allowed}", f"{_THIS_VERSION}; use {remedy or ' or '.join(values)}", field)


def _no_claim(field: str) -> Rule:
    return Rule(
        f"!has(self.{field}) || !self.{field}.matches('^pvc://')",
        f"names a volume claim (pvc://), which {_THIS_VERSION}; use a bucket and write s3://BUCKET/PATH",
        field,
    )


_REFUSALS: dict[type[Model], tuple[Rule, ...]] = {
    DistillationJobSpec: (_absent("recipe", "write its stages"),),
    Stage: (
        _absent("synthesize", "bring the prompts in the dataset"),
        _absent("compress", "publish the model as it is trained"),
    ),
    Train: (
        _only("method", "SFT", "KD"),
        Rule(
            "!has(self.reportTo) || size(self.reportTo) == 0",
            f"{_THIS_VERSION}; read the report of `kd report`",
            "reportTo",
        ),
    ),
    Suite: (_only("name", "HeldOut"),),
    ModelSource: (_no_claim("uri"),),
    Dataset: (_no_claim("uri"), _no_claim("template")),
    Target: (_no_claim("uri"),),
    Scheduling: (_absent("queueName", "leave it out"),),
    ReportCredentials: tuple(
        _absent(field, "leave it out; `kd report` shows the curves") for field in ("wandb", "mlflow", "mlflowUri")
    ),
}


def refusals(model: type[Model]) -> tuple[Rule, ...]:
    """The rules by which this version refuses fields of ``model``."""
    return _REFUSALS.get(model, ())
