"""Renders docs/api.md, the reference of every field, from the models."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel

from kd_runtime.api.crd import kinds
from kd_runtime.api.reasons import REMEDIES
from kd_runtime.api.structural import Schema, schema_of

_TOP = """# API reference

Generated from the models of `kd_runtime.api` by `make generate`; do not edit.

Names are as they are written in manifests. What is left out has the default of the job's runtime, then the one given
here; `null` and absent are one. Unknown fields are errors. **Key** says what a change of the field does to the key of a
stage's artifact: **a** it is part of the key; **b** it is recorded in the manifest; **c** neither; **s** it decides which
stages exist and what they read, and enters keys that way. Lists are replaced as a whole.
"""
_CLASSES = {"Keyed": "a", "Recorded": "b", "Unkeyed": "c", "Structural": "s"}
_SKIPPED = ("apiVersion", "kind", "metadata")


def reference() -> str:
    """The text of docs/api.md."""
    parts = [_TOP]
    for kind, model in kinds().items():
        schema = schema_of(model)
        parts.append(f"\n## {kind}\n\n{schema['description']}\n")
        for name, child in schema["properties"].items():
            if name not in _SKIPPED:
                parts.extend(_section(name, child))
    parts.extend(_reasons())
    return "".join(parts)


def _reasons() -> Iterator[str]:
    yield "\n## Reasons of conditions\n\n| reason | what to do |\n|---|---|\n"
    for reason, remedy in REMEDIES.items():
        yield f"| `{reason}` | {_cell(remedy)} |\n"


def _section(path: str, schema: Schema) -> Iterator[str]:
    """A table of an object's fields, then the sections of the objects in it."""
    yield f"\n### {path}\n\n{_cell(schema.get('description', ''))}\n\n"
    with_keys = not path.startswith("status")
    yield (
        "| field | type | default | key | |\n|---|---|---|---|---|\n"
        if with_keys
        else "| field | type | |\n|---|---|---|\n"
    )
    for name, child in schema["properties"].items():
        required = name in schema.get("required", ())
        default = "required" if required else _default(child)
        cells = [f"`{name}`", _type(child), default, _CLASSES.get(child.get("kd-class", ""), "")]
        cells = cells if with_keys else cells[:2]
        yield f"| {' | '.join(cells)} | {_cell(child.get('description', ''))} |\n"
    yield from _rules(schema)
    for name, child in schema["properties"].items():
        inner, where = _object_in(child, f"{path}.{name}")
        if inner:
            yield from _section(where, inner)


def _rules(schema: Schema) -> Iterator[str]:
    rules = schema.get("x-kubernetes-validations", ())
    fields_of: dict[str, list[str]] = {}
    for rule in rules:
        field = rule.get("fieldPath", "").removeprefix(".")
        known = fields_of.setdefault(rule["message"], [])
        if field not in known:
            known.append(field)
    if rules:
        yield "\nRules:\n\n"
    for message, fields in fields_of.items():
        named = ", ".join(f"`{field}`" for field in fields if field)
        yield f"- {f'{named}: ' if named else ''}{message}\n"


def _object_in(schema: Schema, path: str) -> tuple[Schema | None, str]:
    if "properties" in schema:
        return schema, path
    items = schema.get("items", {})
    return (items, f"{path}[]") if "properties" in items else (None, path)


def _type(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        words = schema["pattern"].strip("^()$").replace("|", ", ")
        return f"integer{_range(schema)} or {words}"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema["type"]
    if kind == "array":
        item = "object" if "properties" in schema["items"] else _type(schema["items"])
        return f"list of {item}{_count(schema, 'Items')}"
    if kind == "object" and "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}{_count(schema, 'Properties')}"
    if kind == "object":
        return "object" if "properties" in schema else "free-form map"
    if kind == "string":
        return f"string{_count(schema, 'Length')}"
    return f"{kind}{_range(schema)}"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    parts = []
    if low is not None:
        parts.append(f"{'>' if schema.get('exclusiveMinimum') else '>='} {low}")
    if high is not None:
        parts.append(f"{'<' if schema.get('exclusiveMaximum') else '<='} {high}")
    return f", {' and '.join(parts)}" if parts else ""


def _count(schema: Schema, what: str) -> str:
    high = schema.get(f"max{what}")
    unit = {"Items": "", "Properties": "", "Length": " characters"}[what]
    return f", at most {high}{unit}" if high is not None else ""


def _default(schema: Schema) -> str:
    default: Any = schema.get("kd-default")
    if default is None or isinstance(default, BaseModel) or default in ((), {}):
        return ""
    if isinstance(default, tuple):
        shown = ", ".join(_plain(item) for item in default)
        return f"`[{shown}]`"
    return f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return str(value.model_dump(mode="json", by_alias=True)).replace("'", "")
    if isinstance(value, Enum):
        return str(value.value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
