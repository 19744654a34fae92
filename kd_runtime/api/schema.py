"""JSON Schema of the kinds, for editors (yaml-language-server and the like)."""

from __future__ import annotations

from typing import Any

from kd_runtime.api.crd import kinds, public
from kd_runtime.api.failures import SettingsError
from kd_runtime.api.structural import Schema, schema_of


def json_schema(kind: str = "DistillationJob") -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``kind``, with defaults, choices and descriptions. Raises SettingsError for no kind."""
    if kind not in kinds():
        raise SettingsError(f"{kind}: is no kind of this API; name one of {', '.join(kinds())}")
    schema = _for_editors(schema_of(kinds()[kind]))
    schema["required"] = ["apiVersion", "kind", *schema.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind, **schema}


def _for_editors(schema: Schema) -> Schema:
    written: Schema = {}
    for key, value in public(schema).items():
        if key == "properties":
            written[key] = {name: _for_editors(child) for name, child in schema[key].items()}
        elif key in ("items", "additionalProperties"):
            written[key] = _for_editors(schema[key])
        elif key == "exclusiveMinimum":
            written["exclusiveMinimum"] = written.pop("minimum", schema["minimum"])
        elif key == "exclusiveMaximum":
            written["exclusiveMaximum"] = written.pop("maximum", schema["maximum"])
        elif not key.startswith("x-") and key != "format":
            written[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        written["type"] = ["integer", "string"]
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        written["additionalProperties"] = False
    default = schema.get("kd-default")
    if isinstance(default, str | bool | int | float):
        written["default"] = default
    return written
