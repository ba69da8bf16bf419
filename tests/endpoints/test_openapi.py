"""Tests of endpoints/openapi/: the document matches the application, and /docs shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

import errors
from endpoints import chat, native, request_fields
from endpoints.openapi import keys, meanings, meanings_of_answers, operator_texts
from tests.project.test_surface import classes
from tests.test_app import Site, make_app

Json = dict[str, Any]
TABLES = (
    *(meanings.REQUEST, meanings.EDITORS, meanings.TOKENIZERS, meanings.CHAT),
    *meanings_of_answers.ANSWERS.values(),
    *operator_texts.meanings().values(),
    *keys.meanings().values(),
)
FOR_ADMINS = {
    kind.code
    for kind in (
        *(errors.AdminRequired, errors.KeyNotFound, errors.KeyExists, errors.KeysReadOnly),
        *(errors.LastAdminKey, errors.KeyChanged),
    )
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


@pytest.fixture
def document(site: Site) -> Json:
    answer = site.client.get("/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    found = answer.json
    assert isinstance(found, dict)
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def resolved(document: Json, value: Json) -> Json:
    if "$ref" not in value:
        return value
    found = document
    for name in value["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_openapi_json_is_a_valid_openapi_document(document: Json) -> None:
    validate(document)


def test_the_documented_operations_are_the_routes_of_the_application(
    site: Site, document: Json
) -> None:
    routes = {
        (re.sub("<(?:path:)?([a-z_]+)>", r"{\1}", rule.rule), method)
        for rule in site.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes


def test_the_request_schemas_have_exactly_the_fields_of_a_body(document: Json) -> None:
    schemas = document["components"]["schemas"]
    faces = {
        "CompletionRequest": {*native.FIELDS},
        "OpenAICompletionRequest": {
            *request_fields.NAMES,
            "prompt",
            "stream_options",
            "additional_params",
        },
    }
    assert set(schemas["ChatRequest"]["properties"]) == {*chat.NATIVE_FIELDS}
    for name, fields in faces.items():
        properties = schemas[name]["properties"]
        assert set(properties) == fields
        inside = properties["additional_params"]["anyOf"][0]["properties"]
        assert set(inside) == request_fields.NAMES - request_fields.BEYOND_PARAMS
        assert set(properties) | set(inside) == {
            *request_fields.NAMES,
            *(fields - request_fields.NAMES),
        }
    assert schemas["CompletionRequest"]["additionalProperties"] is False
    assert schemas["OpenAICompletionRequest"]["additionalProperties"] is True


def fields(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the fields of a schema, also inside of fields, each with its path."""
    for name, field in schema.get("properties", {}).items():
        yield path + name, field
        yield from fields(field, f"{path}{name}.")
    items = [schema["items"]] if "items" in schema else []
    for part in [*schema.get("anyOf", []), *schema.get("oneOf", []), *items]:
        yield from fields(part, path)


def test_every_field_of_every_schema_says_what_it_means(document: Json) -> None:
    schemas = document["components"]["schemas"]
    assert set(meanings.EVERY) <= set(schemas)
    unused = {text for table in TABLES for text in table.values()}
    for name, schema in schemas.items():
        table = meanings.EVERY.get(name, {})
        for path, field in fields(schema):
            assert path in table, f"{name}: {path}"
            assert field["description"].startswith(table[path])
            unused.discard(table[path])
    assert not unused


def test_every_error_code_is_documented_in_both_apis(document: Json) -> None:
    codes = {kind.code: kind.status for kind in classes(errors.SluiceError)}
    seen = {code for code, status in codes.items() if status != errors.ClientGone.status}
    shown: dict[str, set[str]] = {"native": set(), "openai": set()}
    for _, _, operation in operations(document):
        for status, response in operation["responses"].items():
            content = response["content"].get("application/json", {})
            for example in content.get("examples", {}).values():
                if "components/examples" in example.get("$ref", ""):
                    face, _, code = example["$ref"].rpartition("/")[2].partition(".")
                    assert int(status) == codes[code]
                    shown[face].add(code)
    assert shown["native"] == seen
    assert shown["openai"] == seen - FOR_ADMINS  # whose endpoints aren't in OpenAI's API
    schemas = document["components"]["schemas"]
    assert set(schemas["Error"]["properties"]["code"]["enum"]) == seen
    request = schemas["Request"]["properties"]["error_code"]["anyOf"][0]
    assert set(request["enum"]) == set(codes)


def test_every_example_matches_its_schema(document: Json) -> None:
    checked = 0
    for path, _, operation in operations(document):
        holders = [*operation["responses"].values(), operation.get("requestBody", {"content": {}})]
        contents = [media for holder in holders for media in holder["content"].values()]
        for media in [*contents, *operation.get("parameters", [])]:
            samples = [media["example"]] if "example" in media else []
            found = media.get("examples", {}).values()
            samples += [resolved(document, example)["value"] for example in found]
            schema = {**media.get("schema", {}), "components": document["components"]}
            for sample in samples:
                jsonschema.validate(sample, schema)
                checked += 1
            assert samples or media.get("in") in ("header", "query"), path
    assert checked > 100


def test_the_openapi_document_names_only_what_is_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"OPENAI_API_KEY": "none"}
    for number, token in enumerate(("", "secret")):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = make_app(folder, monkeypatch, environ=key, metrics_token=token)
        document = site.client.get("/openapi.json").json
        assert document is not None
        enabled = document["x-sluice-providers"]
        assert {"local", "openai", "sim"} <= set(enabled)
        assert not {"anthropic", "locked"} & set(enabled)
        assert ", ".join(enabled) in document["info"]["description"]
        engines = set(document["x-sluice-engines"])
        assert {"ollama", "vllm"} <= engines <= set(enabled)
        assert not {"local", "openai", "sim"} & engines
        validate(document)
        assert ("metricsToken" in document["components"]["securitySchemes"]) == bool(token)


def test_the_openapi_document_is_built_once(site: Site) -> None:
    first = site.client.get("/openapi.json").data
    assert site.app.extensions["sluice.openapi"] == first
    assert site.client.get("/openapi.json").data == first


def test_the_docs_page_loads_nothing_from_other_hosts(site: Site) -> None:
    page = site.client.get("/docs")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "http" not in page.headers["Content-Security-Policy"]
    assert re.search(r"<script>|<style>|https?:", page.text) is None
    for path in re.findall('(?:src|href)="(/[^"]+)"', page.text):
        assert site.client.get(path, buffered=True).status_code == 200
