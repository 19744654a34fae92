"""Evaluates the schemas' CEL rules on a document, as the API server does."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import cache
from typing import Any

import cel

from kd_runtime.api.errors import FieldError
from kd_runtime.api.structural import Schema

ALLOWED_FUNCTIONS = frozenset(
    {"!_", "_&&_", "_||_", "_==_", "_!=_", "_<_", "_<=_", "matches", "size", "@not_strictly_false", "_?_:_", "_+_"}
    | {"isCIDR"}
)
"""What rules may call: these mean the same here and in Kubernetes. Three of them are what has, all, exists and
exists_one expand to; isCIDR is Kubernetes' own."""


@cache
def compiled(rule: str) -> cel.Program:
    """The compiled rule."""
    return cel.compile(rule)


def violations(schema: Schema, document: Any, invalid: tuple[str, ...] = (), path: str = "") -> Iterator[FieldError]:
    """The rules below ``schema`` that ``document`` breaks. Rules about an update are left out.

    ``invalid`` are paths that the schema itself refuses: an object with such a child is not judged, and a rule that
    cannot be evaluated because of one further down says nothing.
    """
    rules = [rule for rule in schema.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"]]
    judged = path not in invalid if isinstance(document, str) else isinstance(document, dict)
    if rules and judged and not _child_invalid(path, invalid):
        below = any(_is_below(wrong, path) for wrong in invalid)
        for rule in rules:
            if not _holds(rule["rule"], {"self": typed(schema, document)}, below):
                yield broken(rule, document, path)
    for child, value, where in children(schema, document, path):
        yield from violations(child, value, invalid, where)


def update_violations(schema: Schema, old: Any, new: Any, path: str = "") -> Iterator[FieldError]:
    """The rules about an update from ``old`` to ``new`` that are broken, at the levels above any list."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        context = {"self": typed(schema, new), "oldSelf": typed(schema, old)}
        if "oldSelf" in rule["rule"] and not _holds(rule["rule"], context, False):
            yield broken(rule, new, path)
    for name, child in schema.get("properties", {}).items():
        yield from update_violations(child, old.get(name), new.get(name), f"{path}.{name}" if path else name)


def broken(rule: Schema, document: Any, path: str) -> FieldError:
    """What a broken rule says: its field, the value there, its message."""
    field = rule.get("fieldPath", "").removeprefix(".")
    value = document
    for word in field.split(".") if field else ():
        value = value.get(word) if isinstance(value, dict) else None
    message, _, remedy = rule["message"].partition("; ")
    where = ".".join(part for part in (path, field) if part)
    return FieldError(where, value, message, remedy)


def is_cidr(text: str) -> bool:
    """What isCIDR says of ``text`` in Kubernetes: Go's netip.ParsePrefix, without IPv4 addresses within IPv6 ones."""
    address, _, bits = text.partition("/")
    try:
        network = ipaddress.ip_network(text, strict=False)
        mapped = ":" in address and ipaddress.IPv6Address(address).ipv4_mapped is not None
    except ValueError:
        return False
    return bits == str(network.prefixlen) and "%" not in text and not mapped


def _holds(rule: str, variables: dict[str, Any], lenient: bool) -> bool:
    context = cel.Context(variables=variables, functions={"isCIDR": is_cidr})
    try:
        return compiled(rule).execute(context) is True
    except (LookupError, RuntimeError, TypeError, ValueError):
        if lenient:
            return True
        raise


def _child_invalid(path: str, invalid: tuple[str, ...]) -> bool:
    return any(_is_below(wrong, path) and _parent(wrong) == path for wrong in invalid)


def _is_below(wrong: str, path: str) -> bool:
    return not path or wrong == path or wrong.startswith((f"{path}.", f"{path}["))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def children(schema: Schema, document: Any, path: str) -> Iterator[tuple[Schema, Any, str]]:
    """The parts of ``document`` that ``schema`` describes: (schema, value, path)."""
    if isinstance(document, dict):
        for name, value in document.items():
            child = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if child:
                yield child, value, f"{path}.{name}" if path else name
    elif isinstance(document, list) and "items" in schema:
        for index, value in enumerate(document):
            yield schema["items"], value, f"{path}[{index}]"


def typed(schema: Schema, value: Any) -> Any:
    """``value`` with whole numbers as floats where the schema says `number`, as the API server types them for CEL."""
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict):
        properties, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        return {name: typed(properties.get(name, other), item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(schema.get("items", {}), item) for item in value]
    return value
