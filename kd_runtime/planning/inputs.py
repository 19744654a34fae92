"""Which stage's artifact plays which role for a stage: the rules of defaults for `inputs` (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import DistillationJobSpec, Stage, TrainMethod
from kd_runtime.planning.plan import StageType

DATASET = "dataset"
"""Name of the implicit first stage (ingest)."""
MAKES_ROWS = frozenset({StageType.Ingest, StageType.Synthesize, StageType.Generate})
MAKES_LOGITS = frozenset({StageType.Capture})
MAKES_MODEL = frozenset({StageType.Prepare, StageType.Train, StageType.Compress})


@dataclass(frozen=True)
class Wiring:
    """One stage's inputs: role -> stage name; and roles that spec.student.model plays instead."""

    inputs: dict[str, str]
    from_spec: tuple[str, ...] = ()


def stage_type(stage: Stage) -> StageType:
    """The type of a stage of the API."""
    return StageType(stage.type)


def wire(spec: DistillationJobSpec) -> dict[str, Wiring]:
    """Wirings of all stages by name, `dataset` first.

    Raises:
        SettingsError: a role names a stage that is not earlier or does not make that; a stage lacks what it needs.
    """
    done: dict[str, StageType] = {DATASET: StageType.Ingest}
    wirings: dict[str, Wiring] = {DATASET: Wiring({})}
    for number, stage in enumerate(spec.stages):
        wirings[stage.name] = _Wirer(spec, number, stage, done, wirings).wiring()
        done[stage.name] = stage_type(stage)
    return wirings


class _Wirer:
    def __init__(
        self,
        spec: DistillationJobSpec,
        number: int,
        stage: Stage,
        done: dict[str, StageType],
        wirings: dict[str, Wiring],
    ):
        self.spec, self.stage, self.done, self.wirings = spec, stage, done, wirings
        self.path = f"spec.stages[{number}]"

    def wiring(self) -> Wiring:
        kind = stage_type(self.stage)
        inputs: dict[str, str] = {}
        from_spec: list[str] = []
        if kind is StageType.Capture or kind is StageType.Generate:
            inputs["rows"] = self.pick("rows", MAKES_ROWS)
        elif kind is StageType.Prepare:
            self.add_model(inputs, from_spec)
            if self.stage.prepare and self.stage.prepare.prune and self.stage.prepare.prune.by == "BlockInfluence":
                inputs["rows"] = self.pick("rows", MAKES_ROWS)
        elif kind is StageType.Train:
            self.add_model(inputs, from_spec)
            if self.stage.train and self.stage.train.method == TrainMethod.KD:
                inputs["logits"] = self.pick("logits", MAKES_LOGITS)
            self.add_rows(inputs)
        elif kind is StageType.Evaluate:
            self.add_evaluation(inputs, from_spec)
        elif kind is StageType.Publish:
            self.add_model(inputs, from_spec)
            self.add_judgements(inputs)
        return Wiring(inputs, tuple(from_spec))

    def said(self, role: str) -> str | None:
        said: str | None = getattr(self.stage.inputs, role, None)
        return said

    def pick(self, role: str, makers: frozenset[StageType], optional: bool = False) -> str:
        """The stage that plays ``role``: the one that is said, else the newest earlier one that makes it ('' if optional)."""
        said = self.said(role)
        if said is not None:
            if said not in self.done:
                raise SettingsError(
                    f"{self.path}.inputs.{role}: {said!r} is no earlier stage; name one of {', '.join(self.done)}"
                )
            if self.done[said] not in makers:
                raise SettingsError(
                    f"{self.path}.inputs.{role}: {said!r} is a {self.done[said]} stage and makes no {role}; "
                    f"name one of {self.makers_text(makers)}"
                )
            return said
        candidates = [name for name, kind in self.done.items() if kind in makers]
        if not candidates and not optional:
            raise SettingsError(
                f"{self.path}.inputs.{role}: no earlier stage makes {role}; add one before {self.stage.name!r}"
            )
        return candidates[-1] if candidates else ""

    def makers_text(self, makers: frozenset[StageType]) -> str:
        return ", ".join(name for name, kind in self.done.items() if kind in makers) or "none: add one"

    def add_model(self, inputs: dict[str, str], from_spec: list[str], role: str = "model") -> None:
        name = self.pick(role, MAKES_MODEL, optional=True)
        makers = [n for n, kind in self.done.items() if kind in MAKES_MODEL]
        if name and self.said(role) is None and len(makers) > 1:
            raise SettingsError(
                f"{self.path}.inputs.{role}: {' and '.join(makers)} both make a model; say which one {self.stage.name!r} takes"
            )
        if name:
            inputs[role] = name
        else:
            from_spec.append(role)

    def add_rows(self, inputs: dict[str, str]) -> None:
        """Rows of the logits, where logits are read and nothing else is said."""
        if "logits" in inputs and self.said("rows") is None:
            inputs["rows"] = self.wirings[inputs["logits"]].inputs["rows"]
        else:
            inputs["rows"] = self.pick("rows", MAKES_ROWS)

    def add_evaluation(self, inputs: dict[str, str], from_spec: list[str]) -> None:
        self.add_model(inputs, from_spec)
        logits = self.pick("logits", MAKES_LOGITS, optional=True)
        if logits:
            inputs["logits"] = logits
        self.add_rows(inputs)
        answers = self.answers(inputs["rows"])
        if answers:
            inputs["answers"] = answers
        trained = self.training_of(inputs.get("model"))
        if trained:
            wiring = self.wirings[trained]
            if "model" in wiring.inputs:
                inputs["baseline"] = wiring.inputs["model"]
            else:
                from_spec.append("baseline")

    def answers(self, rows: str) -> str | None:
        """The generate stage whose answers the rows hold, if there is one."""
        return rows if self.done[rows] is StageType.Generate else None

    def training_of(self, model: str | None) -> str | None:
        """The train stage that made ``model``, through compression."""
        while model is not None:
            if self.done[model] is StageType.Train:
                return model
            model = self.wirings[model].inputs.get("model")
        return None

    def add_judgements(self, inputs: dict[str, str]) -> None:
        """Every evaluate stage of the model that is published, as evaluation.<name>."""
        for name, kind in self.done.items():
            if kind is StageType.Evaluate and self.wirings[name].inputs.get("model") == inputs.get("model"):
                inputs[f"evaluation.{name}"] = name


def consumers(inputs: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """For each stage name, the names of the stages that read it."""
    readers: dict[str, list[str]] = {name: [] for name in inputs}
    for name, roles in inputs.items():
        for source in roles.values():
            if name not in readers[source]:
                readers[source].append(name)
    return readers
