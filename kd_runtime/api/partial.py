"""Models with every field optional: what a runtime's `defaults` may say, and the merge of defaults under a document."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from kd_runtime.api.classes import KeyClass
from kd_runtime.api.model import Model


@cache
def partial(model: type[Model]) -> type[Model]:
    """``model`` with all fields optional, nested models too, and without its rules."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        classes = [item for item in info.metadata if isinstance(item, KeyClass)]
        bounds = [item for item in info.metadata if not isinstance(item, KeyClass)]
        annotation: Any = _partial_annotation(info.annotation)
        if bounds:
            annotation = Annotated[(annotation, *bounds)]
        optional: Any = Union[annotation, None]  # noqa: UP007 - built at run time
        if classes:
            optional = Annotated[(optional, *classes)]
        fields[name] = (optional, FieldInfo(default=None, description=info.description))
    made: type[Model] = create_model(f"Partial{model.__name__}", __base__=Model, **fields)
    made.__doc__ = model.__doc__
    made.exclusive = model.exclusive
    return made


def _partial_annotation(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return partial(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        members = tuple(_partial_annotation(member) for member in get_args(annotation))
        return Union[members]  # noqa: UP007 - built at run time
    return annotation


def optional_model(annotation: Any) -> type[Model] | None:
    """The model that a field holds, where it holds one (or one or nothing)."""
    candidates = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Model):
            return candidate
    return None


def merge_under(document: Any, defaults: Mapping[str, Any], model: type[BaseModel]) -> Any:
    """``document`` with ``defaults`` filled in where it says nothing; both are maps under manifest names.

    Of fields that exclude each other the document's choice stays. An object that is absent unless it is asked for
    (`lora`, `hosted`, `budget`) is not brought in by a default: defaults only fill it where the document has it.
    """
    if not isinstance(document, dict):
        return document
    merged = dict(document)
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        if name not in defaults or _excluded(merged, attribute, model):
            continue
        held = optional_model(info.annotation)
        if held is None:
            merged.setdefault(name, defaults[name])
        elif name in merged or info.default is not None:
            merged[name] = merge_under(merged.get(name, {}), defaults[name], held)
    return merged


def _excluded(document: dict[str, Any], attribute: str, model: type[BaseModel]) -> bool:
    for group in getattr(model, "exclusive", ()):
        if attribute in group:
            others = (model.model_fields[other].alias or other for other in group if other != attribute)
            return any(other in document for other in others)
    return False
