"""Which stage's artifact plays which role for a stage: the defaults of `inputs`, and every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kd_runtime.api.data_stages import PruneBy
from kd_runtime.api.errors import FieldError
from kd_runtime.api.stage import Stage
from kd_runtime.api.train import TrainMethod

DATASET = "dataset"
"""Name of the implicit first stage (ingest)."""
MAKES: dict[str, frozenset[str]] = {
    "rows": frozenset({"ingest", "synthesize", "generate"}),
    "logits": frozenset({"capture"}),
    "model": frozenset({"prepare", "train", "compress"}),
}
"""Role -> the stage types whose artifact can play it."""


@dataclass(frozen=True)
class Wiring:
    """One stage's inputs: role -> stage name; and the roles that spec.student.model plays instead.

    Roles: rows, logits, model, baseline, answers, evaluation.<stage>.
    """

    inputs: dict[str, str] = field(default_factory=dict)
    from_spec: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """``student reads rows of answers, model of the spec``."""
        parts = [f"{role} of {source}" for role, source in self.inputs.items()]
        parts += [f"{role} of the spec" for role in self.from_spec]
        return f"{name} reads {', '.join(parts) or 'the dataset'}"


@dataclass
class Wired:
    """The wirings of all stages by name, `dataset` first, and what is wrong with them."""

    wirings: dict[str, Wiring]
    types: dict[str, str]
    errors: list[FieldError]

    def training_of(self, model: str | None) -> str | None:
        """The train stage that made ``model``, through compression; None where none did."""
        while model is not None:
            if self.types[model] == "train":
                return model
            model = self.wirings[model].inputs.get("model") if self.types[model] == "compress" else None
        return None


def wire(stages: tuple[Stage, ...]) -> Wired:
    """The inputs of every stage; a role that cannot be filled is left out and said in ``errors``."""
    wired = Wired({DATASET: Wiring()}, {DATASET: "ingest"}, [])
    for number, stage in enumerate(stages):
        wired.wirings[stage.name] = _Wirer(f"spec.stages[{number}]", stage, wired).wiring()
        wired.types[stage.name] = stage.type
    return wired


class _Wirer:
    """Fills the roles of one stage from the stages before it."""

    def __init__(self, path: str, stage: Stage, before: Wired) -> None:
        self.path, self.stage, self.before = path, stage, before
        self.inputs: dict[str, str] = {}
        self.from_spec: list[str] = []

    def wiring(self) -> Wiring:
        stage = self.stage
        if stage.type in ("prepare", "train", "compress", "evaluate", "publish"):
            self.add_model()
        if stage.type == "evaluate" or (stage.train is not None and stage.train.method is not TrainMethod.SFT):
            self.add("logits", optional=stage.type == "evaluate")
        if self.reads_rows():
            self.add_rows()
        if stage.type == "evaluate":
            self.add_comparisons()
        if stage.type == "publish":
            self.add_judgements()
        return Wiring(self.inputs, tuple(self.from_spec))

    def reads_rows(self) -> bool:
        prepare = self.stage.prepare
        if prepare is not None:
            return prepare.prune is not None and prepare.prune.by is PruneBy.BlockInfluence
        return self.stage.type != "publish"

    def said(self, role: str) -> str | None:
        said: str | None = getattr(self.stage.inputs, role, None)
        return said

    def makers(self, role: str) -> list[str]:
        """Earlier stages that make what ``role`` takes."""
        return [name for name, kind in self.before.types.items() if kind in MAKES[role]]

    def fail(self, role: str, message: str, remedy: str) -> None:
        self.before.errors.append(FieldError(f"{self.path}.inputs.{role}", self.said(role), message, remedy))

    def add(self, role: str, optional: bool = False) -> None:
        """The stage that is said, else the newest earlier one that makes it."""
        said, makers = self.said(role), self.makers(role)
        known = ", ".join(makers) or "none; add one"
        if said is not None and said not in self.before.types:
            self.fail(role, "is no earlier stage", f"name one that makes {role}: {known}")
        elif said is not None and said not in makers:
            self.fail(role, f"is a {self.before.types[said]} stage and makes no {role}", f"name one that does: {known}")
        elif said is not None or makers:
            self.inputs[role] = said or makers[-1]
        elif not optional:
            self.fail(role, f"no earlier stage makes {role}", f"add one before {self.stage.name}")

    def add_model(self) -> None:
        makers = self.makers("model")
        if self.said("model") is None and len(makers) > 1:
            self.fail("model", f"{' and '.join(makers)} make a model each", f"say which one {self.stage.name} takes")
            return
        self.add("model", optional=True)
        if self.said("model") is None and not makers:
            self.from_spec.append("model")

    def add_rows(self) -> None:
        """Rows of the logits, where logits are read: another set of rows would not join with them."""
        captured = self.inputs.get("logits")
        of_logits = self.before.wirings[captured].inputs.get("rows") if captured else None
        if of_logits is None:
            self.add("rows")
            return
        said = self.said("rows")
        if said is not None and said != of_logits:
            self.fail("rows", f"are not the rows of {captured}", f"leave it out, or name {of_logits}")
        self.inputs["rows"] = of_logits

    def add_comparisons(self) -> None:
        rows = self.inputs.get("rows")
        if rows is not None and self.before.types[rows] == "generate":
            self.inputs["answers"] = rows
        trained = self.before.training_of(self.inputs.get("model"))
        if trained is None:
            return
        before = self.before.wirings[trained]
        if "model" in before.inputs:
            self.inputs["baseline"] = before.inputs["model"]
        elif "model" in before.from_spec:
            self.from_spec.append("baseline")

    def add_judgements(self) -> None:
        """Every evaluate stage of the model that is published, as evaluation.<name>."""
        for name in evaluations(self.before, self.inputs.get("model")):
            self.inputs[f"evaluation.{name}"] = name


def evaluations(wired: Wired, model: str | None) -> Iterator[str]:
    """The evaluate stages of ``model`` (None: the spec's)."""
    for name, kind in wired.types.items():
        if kind == "evaluate" and wired.wirings[name].inputs.get("model") == model:
            yield name
