"""Checks a document against a structural schema, as the API server does, and says what is wrong in words."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

from kd_runtime.api.cel_rules import children
from kd_runtime.api.errors import FieldError
from kd_runtime.api.structural import Schema

_KINDS = {
    "object": "a map",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
LARGEST_INTEGER = 2**53


def structure_errors(schema: Schema, document: Any, path: str = "") -> Iterator[FieldError]:
    """Everything in ``document`` that ``schema`` refuses, in the document's order."""
    error = _wrong_kind(schema, document, path) or _wrong_value(schema, document, path)
    if error:
        yield error
        return
    if isinstance(document, dict):
        yield from _fields(schema, document, path)
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        yield from _inexact(document, path)
    for child, value, where in children(schema, document, path):
        yield from structure_errors(child, value, where)


def known(schema: Schema, document: Any) -> Any:
    """``document`` without the fields that ``schema`` does not know: what a later version wrote, as this one can read it."""
    properties, other = schema.get("properties", {}), schema.get("additionalProperties")
    if isinstance(document, dict) and (properties or other):
        parts = {name: properties.get(name, other) for name in document}
        return {name: known(parts[name], value) for name, value in document.items() if parts[name]}
    if isinstance(document, list) and "items" in schema:
        return [known(schema["items"], value) for value in document]
    return document


def kind_of(value: Any) -> str:
    """The JSON Schema type of a value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() and abs(value) <= LARGEST_INTEGER else "number"
    for python, kind in ((str, "string"), (dict, "object"), (list, "array")):
        if isinstance(value, python):
            return kind
    return "null"


def _wrong_kind(schema: Schema, value: Any, path: str) -> FieldError | None:
    found = kind_of(value)
    if schema.get("x-kubernetes-int-or-string"):
        if found in ("integer", "string"):
            return None
        return FieldError(path, value, f"is {_said(found)}, not a whole number or a word", _remedy(schema, value))
    wanted = schema.get("type")
    if wanted is None or found == wanted or (wanted == "number" and found == "integer"):
        return None
    return FieldError(path, value, f"is {_said(found)}, not {_KINDS[wanted]}", _remedy(schema, value))


def _said(kind: str) -> str:
    return {"null": "nothing", "boolean": "a boolean"}.get(kind, _KINDS.get(kind, kind))


def _remedy(schema: Schema, value: Any) -> str:
    wanted = schema.get("type")
    if wanted == "string" and isinstance(value, bool | int | float):
        return schema.get("kd-remedy") or "put it in quotes"
    if wanted in ("integer", "number", "boolean") and isinstance(value, str):
        return f"write {_KINDS[wanted]} without quotes"
    if wanted == "array":
        return "write a list: [...], or lines that begin with -"
    if wanted == "object":
        return (
            f"write a map with {_listed(schema['properties'])}"
            if schema.get("properties")
            else "write a map: {key: value}"
        )
    return f"write {_KINDS[wanted]}" if wanted else "write a whole number or the word"


def _wrong_value(schema: Schema, value: Any, path: str) -> FieldError | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _wrong_number(schema, value, path)
    if isinstance(value, str):
        return _wrong_string(schema, value, path)
    return _wrong_size(schema, value, path)


def _wrong_number(schema: Schema, value: float, path: str) -> FieldError | None:
    if not math.isfinite(value) or abs(value) > LARGEST_INTEGER:
        return FieldError(path, value, "is not a number that JSON keeps exactly", "stay below 2^53")
    low, high = schema.get("minimum"), schema.get("maximum")
    open_low, open_high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    said = schema.get("kd-remedy")
    if low is not None and (value < low or (open_low and value == low)):
        words = f"is not above {low:g}" if open_low else f"is below {low:g}"
        return FieldError(path, value, words, said or f"use {'more than' if open_low else 'at least'} {low:g}")
    if high is not None and (value > high or (open_high and value == high)):
        words = f"is not below {high:g}" if open_high else f"exceeds {high:,}".replace(",", "")
        return FieldError(path, value, words, said or f"use {'less than' if open_high else 'at most'} {high:g}")
    return None


def _wrong_string(schema: Schema, value: str, path: str) -> FieldError | None:
    choices = schema.get("enum")
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(value.lower(), [choice.lower() for choice in choices], 1)
        meant = next((f"did you mean {choice}? " for choice in choices if near and choice.lower() == near[0]), "")
        return FieldError(path, value, f"is not one of {', '.join(choices)}", f"{meant}use one of them".strip())
    if len(value) < schema.get("minLength", 0):
        return FieldError(path, value, "is empty", schema.get("kd-remedy") or "write a value or leave the field out")
    if len(value) > schema.get("maxLength", math.inf):
        said = schema.get("kd-remedy") or "shorten it"
        return FieldError(path, value, f"has {len(value)} characters, more than {schema['maxLength']}", said)
    pattern = schema.get("pattern")
    if pattern and not re.search(re.sub(r"\$$", r"\\Z", pattern), value, re.ASCII):
        return FieldError(
            path, value, f"does not match {pattern}", schema.get("kd-remedy") or "write it so that it does"
        )
    return None


def _wrong_size(schema: Schema, value: Any, path: str) -> FieldError | None:
    kind, what = ("Items", "items") if isinstance(value, list) else ("Properties", "entries")
    low, high = schema.get(f"min{kind}", 0), schema.get(f"max{kind}", math.inf)
    if len(value) < low:
        return FieldError(
            path,
            value,
            f"has {len(value)} {what}, fewer than {low}",
            schema.get("kd-remedy") or f"write at least {low}",
        )
    if len(value) > high:
        return FieldError(
            path,
            value,
            f"has {len(value)} {what}, more than {high}",
            schema.get("kd-remedy") or f"write at most {high}",
        )
    return None


def _fields(schema: Schema, document: dict[str, Any], path: str) -> Iterator[FieldError]:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in document]
    if properties:
        for name in document:
            if name not in properties:
                yield _unknown(schema, name, document[name], path, missing)
    for name in missing:
        choices = properties[name].get("enum")
        remedy = f"add one of {', '.join(choices)}" if choices else "add it"
        about = properties[name].get("description", "").rstrip(".")
        yield FieldError(_join(path, name), None, "is missing", f"{remedy} ({about})" if about else remedy)


def _unknown(schema: Schema, name: str, value: Any, path: str, missing: list[str]) -> FieldError:
    properties = schema["properties"]
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in properties], 1, 0.7)
    if near:
        meant = next(known for known in properties if known.lower() == near[0])
        return FieldError(_join(path, name), value, "is no field", f"did you mean {meant}?")
    for outer, child in properties.items():
        if name in child.get("properties", {}):
            return FieldError(_join(path, name), value, "is no field here", f"did you mean {outer}.{name}?")
    return FieldError(_join(path, name), value, "is no field", f"remove it; the fields here are {_listed(properties)}")


def _inexact(value: Any, path: str) -> Iterator[FieldError]:
    """Numbers in free-form maps that JSON does not keep (contract 1)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _inexact(item, _join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _inexact(item, f"{path}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        error = _wrong_number({}, value, path)
        if error:
            yield error


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _listed(names: Any) -> str:
    return ", ".join(names)
