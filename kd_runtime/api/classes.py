"""Key classes: what each leaf of the API means for a stage's key (contract 1), and how to walk a model's leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class KeyClass(StrEnum):
    """What a change of a leaf does to keys."""

    Keyed = "Keyed"
    """(a) part of the key of every stage that uses it."""
    Recorded = "Recorded"
    """(b) written into the manifest, not part of the key."""
    Unkeyed = "Unkeyed"
    """(c) neither. The URI of a model or dataset is here: what it holds is keyed, where it lies is not."""
    Structural = "Structural"
    """Decides which stages exist and what they read, and enters keys that way."""


Keyed = KeyClass.Keyed
Recorded = KeyClass.Recorded
Unkeyed = KeyClass.Unkeyed
Structural = KeyClass.Structural


def key_class(info: FieldInfo) -> KeyClass | None:
    """The class written in a field's annotation; None on fields that hold models."""
    return next((item for item in info.metadata if isinstance(item, KeyClass)), None)


def field_name(model: type[BaseModel], attribute: str) -> str:
    """The name of an attribute in manifests: ``top_k`` -> ``topK``."""
    return model.model_fields[attribute].alias or attribute


def leaves(instance: BaseModel, path: str = "") -> Iterator[tuple[str, Any, KeyClass]]:
    """Every leaf of ``instance`` that is set or has a default: (path such as ``suites[0].maxTokens``, JSON value, class).

    A list or map of plain values is one leaf. Absent (None) leaves are left out.
    """
    plain = instance.model_dump(mode="json", by_alias=True)
    for attribute, info in type(instance).model_fields.items():
        value = getattr(instance, attribute)
        name = field_name(type(instance), attribute)
        here = f"{path}.{name}" if path else name
        found = key_class(info)
        if value is None:
            continue
        if found is not None:
            yield here, plain[name], found
        elif isinstance(value, BaseModel):
            yield from leaves(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                yield from leaves(item, f"{here}[{index}]")
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from leaves(item, f"{here}.{key}")
        else:
            raise TypeError(f"{type(instance).__name__}.{attribute} has no key class")


def keyed(instance: BaseModel) -> dict[str, Any]:
    """The class (a) settings of ``instance``, nested under their manifest names, ready for JSON."""
    return _select(instance, lambda found: found is KeyClass.Keyed)


def recorded(instance: BaseModel) -> dict[str, Any]:
    """The class (b) settings of ``instance``, nested under their manifest names, ready for JSON."""
    return _select(instance, lambda found: found is KeyClass.Recorded)


def _select(instance: BaseModel, wanted: Callable[[KeyClass], bool]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    plain = instance.model_dump(mode="json", by_alias=True)
    for attribute, info in type(instance).model_fields.items():
        value = getattr(instance, attribute)
        name = field_name(type(instance), attribute)
        found = key_class(info)
        if value is None:
            continue
        if found is not None:
            if wanted(found):
                chosen[name] = plain[name]
            continue
        part = _select_within(value, wanted)
        if part:
            chosen[name] = part
    return chosen


def _select_within(value: Any, wanted: Callable[[KeyClass], bool]) -> Any:
    if isinstance(value, BaseModel):
        return _select(value, wanted)
    if isinstance(value, tuple):
        parts = [_select(item, wanted) for item in value]
        return parts if any(parts) else []
    return {key: _select(item, wanted) for key, item in value.items()}
