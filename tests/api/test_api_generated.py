"""CRDs, reference and editor schema come from the models and are as Kubernetes wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kd_runtime.api.crd import LIMIT_BYTES, crds, kinds
from kd_runtime.api.docs import reference
from kd_runtime.api.failures import SettingsError
from kd_runtime.api.generate import generated
from kd_runtime.api.parse import load_documents, without_nulls
from kd_runtime.api.reasons import REMEDIES, Reason
from kd_runtime.api.schema import json_schema
from kd_runtime.api.structural import schema_of

CORPUS = Path(__file__).parent / "corpus"
GENERATED = generated()
FREE_FORM = {"config", "params"}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}[]")


def roots() -> dict[str, dict[str, Any]]:
    return {name: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for name, crd in crds().items()}


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_what_is_in_the_repository_is_what_the_models_say(path: Path) -> None:
    assert path.read_text() == GENERATED[path]


@pytest.mark.parametrize("name", crds())
def test_a_crd_is_small_enough_to_be_applied(name: str) -> None:
    text = next(text for path, text in GENERATED.items() if path.name == name)
    assert len(text.encode()) < LIMIT_BYTES


@pytest.mark.parametrize("name", crds())
def test_a_crd_has_neither_references_nor_defaults_nor_notes_of_our_own(name: str) -> None:
    for path, schema in nodes(roots()[name]):
        assert not {"$ref", "default", "anyOf", "allOf", "oneOf"} & set(schema), path
        assert not [key for key in schema if key.startswith("kd-")], path


@pytest.mark.parametrize("name", crds())
def test_every_list_string_and_number_of_a_spec_is_bounded(name: str) -> None:
    for path, schema in nodes(roots()[name]["properties"]["spec"]):
        kind = schema.get("type")
        if kind == "array":
            assert "maxItems" in schema and schema["x-kubernetes-list-type"] == "atomic", path
        if kind == "string":
            assert "enum" in schema or "maxLength" in schema, path
        if kind in ("integer", "number"):
            assert {"minimum", "maximum"} <= set(schema), path
        if kind == "object" and "additionalProperties" in schema:
            assert "maxProperties" in schema, path


@pytest.mark.parametrize("name", crds())
def test_only_free_form_maps_keep_unknown_fields(name: str) -> None:
    free = {
        path.rpartition(".")[2]
        for path, schema in nodes(roots()[name])
        if "x-kubernetes-preserve-unknown-fields" in schema
    }
    assert free <= FREE_FORM


def test_there_is_no_enum_under_status() -> None:
    status = roots()["kubedistill.io_distillationjobs.yaml"]["properties"]["status"]
    assert not [path for path, schema in nodes(status) if "enum" in schema]


@pytest.mark.parametrize("kind", kinds())
def test_every_field_has_a_description_and_is_in_the_reference(kind: str) -> None:
    text = reference()
    for path, schema in nodes(schema_of(kinds()[kind])["properties"]["spec"], "spec"):
        name = path.rpartition(".")[2]
        if "[]" not in name:
            assert schema.get("description"), path
            assert f"`{name}`" in text or name == "spec", path


def test_every_reason_has_a_remedy_in_the_reference() -> None:
    text = reference()
    assert set(REMEDIES) == set(Reason)
    assert all(f"`{reason}` | {REMEDIES[reason]}" in text for reason in Reason)


@pytest.mark.parametrize("path", sorted((CORPUS / "good").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_for_editors_accepts_good_manifests(path: Path) -> None:
    for document in load_documents(path):
        jsonschema.Draft202012Validator(json_schema(document["kind"])).validate(without_nulls(document))


@pytest.mark.parametrize("name", ["capture-top-k-large", "spec-unknown-field", "dataset-format", "train-learning-rate"])
def test_the_schema_for_editors_refuses_bad_ones(name: str) -> None:
    (document,) = load_documents(CORPUS / "bad" / f"{name}.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema(document["kind"])).validate(document)


def test_there_is_a_schema_for_no_other_kind() -> None:
    with pytest.raises(SettingsError, match="Pod: is no kind of this API; name one of DistillationJob"):
        json_schema("Pod")
