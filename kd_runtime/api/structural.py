"""From models to Kubernetes' structural schemas: the one description that the API server and `kd lint` both check against."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from kd_runtime.api.classes import KeyClass
from kd_runtime.api.metadata import ObjectMeta
from kd_runtime.api.model import ListMap, Model, Remedy, Rule
from kd_runtime.api.unsupported import refusals

Schema = dict[str, Any]

PRIVATE = "kd-"
"""Prefix of what only this project reads in a schema: kd-remedy, kd-class, kd-default, kd-metadata."""

_BOUNDS = {
    "ge": "minimum",
    "le": "maximum",
    "pattern": "pattern",
}
_SIZES = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}


@cache
def schema_of(model: type[Model]) -> Schema:
    """The structural schema of ``model``, with its rules and the refusals of this version; it must not be changed."""
    properties: Schema = {}
    required: list[str] = []
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        properties[name] = _field(info)
        if info.is_required():
            required.append(name)
    schema: Schema = {"type": "object", "properties": properties}
    if model.__doc__:
        schema["description"] = " ".join(model.__doc__.split())
    if required:
        schema["required"] = required
    if issubclass(model, ObjectMeta):
        schema["kd-metadata"] = True
    rules = [*model.rules, *refusals(model)]
    if rules:
        schema["x-kubernetes-validations"] = [_validation(rule) for rule in rules]
    return schema


def _validation(rule: Rule) -> Schema:
    validation = {"rule": rule.cel, "message": rule.message}
    if rule.field:
        validation["fieldPath"] = f".{rule.field}"
    return validation


def _validation_of_string(rule: Rule) -> Schema:
    """The server names a field, but of a string that breaks a rule not the value: the message must."""
    repeated = {"messageExpression": f'self + " {rule.message}"'} if rule.repeats else {}
    return {**_validation(rule), **repeated}


def _field(info: FieldInfo) -> Schema:
    schema = dict(_type(info.annotation, info.metadata))
    if info.description:
        schema["description"] = " ".join(info.description.split())
    if not info.is_required():
        schema["kd-default"] = info.get_default(call_default_factory=True)
    return schema


def _type(annotation: Any, metadata: Iterable[Any]) -> Schema:
    """The schema of a type with what `Annotated` says of it."""
    marks = list(_flat(metadata))
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, [*more, *marks])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _type(members[0], marks) if len(members) == 1 else _marked(_either(members), marks)
    return _marked(_plain(annotation), marks)


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _plain(annotation: Any) -> Schema:
    simple = {bool: "boolean", str: "string", float: "number"}
    if annotation in simple:
        return {"type": simple[annotation]}
    if annotation is int:
        return {"type": "integer", "format": "int64"}
    if get_origin(annotation) is Literal:
        return {"type": "string", "enum": list(get_args(annotation))}
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        return {"type": "array", "items": _type(item, ()), "x-kubernetes-list-type": "atomic"}
    if get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        if value is Any:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return {"type": "object", "additionalProperties": _type(value, ())}
    if issubclass(annotation, Enum):
        return {"type": "string", "enum": [member.value for member in annotation]}
    if issubclass(annotation, Model):
        return dict(schema_of(annotation))
    raise TypeError(f"no structural schema for {annotation!r}")


def _either(members: list[Any]) -> Schema:
    """An integer or one certain word: the only union that a structural schema has room for."""
    parts = [_type(member, ()) for member in members]
    integer = next(part for part in parts if part["type"] == "integer")
    words = next(part for part in parts if part["type"] == "string")["enum"]
    bounds = {key: value for key, value in integer.items() if key not in ("type", "format")}
    return {"x-kubernetes-int-or-string": True, "pattern": f"^({'|'.join(words)})$", "maxLength": 16, **bounds}


def _marked(schema: Schema, marks: list[Any]) -> Schema:
    for mark in marks:
        if isinstance(mark, KeyClass):
            schema["kd-class"] = mark.value
        elif isinstance(mark, Rule):
            schema["x-kubernetes-validations"] = [_validation_of_string(mark)]
        elif isinstance(mark, Remedy):
            schema["kd-remedy"] = mark.text
        elif isinstance(mark, ListMap):
            schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [mark.key]}
        else:
            _bound(schema, mark)
    return schema


def _bound(schema: Schema, mark: Any) -> None:
    for attribute, keyword in _BOUNDS.items():
        if getattr(mark, attribute, None) is not None:
            schema[keyword] = getattr(mark, attribute)
    for attribute, keyword in (("gt", "minimum"), ("lt", "maximum")):
        if getattr(mark, attribute, None) is not None:
            schema |= {keyword: getattr(mark, attribute), f"exclusive{keyword.capitalize()}": True}
    for attribute, keyword in zip(("min_length", "max_length"), _SIZES.get(schema.get("type", ""), ()), strict=False):
        if getattr(mark, attribute, None) is not None:
            schema[keyword] = getattr(mark, attribute)
