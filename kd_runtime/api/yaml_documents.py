"""YAML as Kubernetes' tools and people agree on it: what would mean different things to the two is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kd_runtime.api.errors import FieldError, ManifestErrors

_BOOLEAN_TRAP = re.compile(r"^(y|Y|n|N|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$")
MOST_VALUES = 100_000
"""Of a document once its aliases are written out, as every check walks it; one that etcd takes has fewer."""
_OCTAL_TRAP = re.compile(r"^[-+]?0[0-9_]+$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema; traps of YAML 1.1 and repeated keys are errors."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_document(self, node: yaml.Node) -> Any:
        _values(node, {})
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _trap(key_node, f"the key {key_node.value} is not a string; quote it")
            if key in mapping:
                raise _trap(key_node, f"the key {key} appears twice in one map; remove one")
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping

    def construct_scalar(self, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == "tag:yaml.org,2002:str":
            if _BOOLEAN_TRAP.match(node.value):
                raise _trap(node, f"plain {node.value} is a boolean to Kubernetes; write true or false, or quote it")
            if _OCTAL_TRAP.match(node.value):
                raise _trap(node, f"plain {node.value} is an octal number to Kubernetes; quote it or drop the zero")
        return super().construct_scalar(node)


def _trap(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values ``node`` holds with its aliases written out; ``known`` are those of nodes, 0 while it is being found."""
    if id(node) in known:
        if not known[id(node)]:
            raise _trap(node, "an alias stands within what it names; write the value out")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        total += sum(_values(part, known) for part in (child if isinstance(child, tuple) else (child,)))
        if total > MOST_VALUES:
            raise _trap(node, f"holds more than {MOST_VALUES} values once aliases are written out; use fewer aliases")
    known[id(node)] = total
    return total


def _construct_map(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
for _tag, _pattern, _first in (
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^([-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    ("merge", r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def documents_of(text: str, source: str) -> list[dict[str, Any]]:
    """The documents in ``text``; empty ones are left out.

    Raises:
        ManifestErrors: not YAML, a key twice, a scalar that YAML 1.1 and 1.2 read differently, aliases that multiply
            beyond `MOST_VALUES`, or a document that is no map.
    """
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else "file"
        message, _, remedy = (error.problem or str(error)).partition("; ")
        raise ManifestErrors([FieldError(line, None, message, remedy or "correct the YAML")], source) from error
    except RecursionError as error:
        deep = FieldError("file", None, "is nested too deeply", "write fewer levels of lists and maps")
        raise ManifestErrors([deep], source) from error
    except yaml.YAMLError as error:
        raise ManifestErrors([FieldError("file", None, str(error), "write it as UTF-8 YAML")], source) from error
    for number, document in enumerate(documents):
        if not isinstance(document, dict):
            kind = type(document).__name__
            wrong = FieldError(
                f"document {number + 1}", None, f"is a {kind}, not a map", "start with apiVersion and kind"
            )
            raise ManifestErrors([wrong], source)
    return documents


def load_documents(path: Path | str) -> list[dict[str, Any]]:
    """The documents in the file ``path``. Raises ManifestErrors as `documents_of`, and where it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestErrors(
            [FieldError("file", None, f"cannot be read: {error}", "name a YAML file")], str(path)
        ) from error
    return documents_of(text, str(path))
