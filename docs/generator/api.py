"""The references of the two HTTP APIs, from the OpenAPI documents that they serve."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.neuron import NeuronConfig, NeuronSection
from cortex_server.gateway import Gateway
from cortex_server.proxy.routes import ROUTES
from generator.text import described, page, sentence, table
from neuron_server.main import create_app, create_runtime

Schema = dict[str, Any]

_CALL = re.compile(r"(Answer to )?(GET|POST|DELETE) /\S+?(\.$|: )", re.MULTILINE)

_GATEWAY = """The gateway serves its OpenAPI document at `/openapi.json`, and the same to be read at `/docs`. Which key
opens which route is told by [one table](scopes.md); what goes wrong is told by [error codes](errors.md)."""
_INFERENCE = """These take what OpenAI's, or Anthropic's, API takes, and `model` may be any name or alias of
models.toml. An engine that lacks a route says so with 501."""
_HEADERS = """Requests may carry `X-Cortex-Session` (turns of one session go to the instance that has them cached),
`X-Cortex-Priority` (`1` to `9`, as far as the key's `max_priority` allows), `X-Request-Id` and `traceparent`. Answers
carry:

| header | what it says |
|---|---|
| `x-request-id` | the request's id, as logs and `cortex why` know it |
| `x-cortex-node`, `x-cortex-instance` | who computed it |
| `x-cortex-cold-start` | whether it waited for a load |
| `x-cortex-queue-ms` | milliseconds that it waited; not there when comments came while it did |
| `x-cortex-route` | why this instance was taken |"""
_NEURON = """A neuron listens on port 9090, and asks for its `token` as `Authorization: Bearer ...` where it has one. It
serves its OpenAPI document at `/openapi.json`. Gateways ask the same; nothing here is for clients. Where it listens on
more than loopback it also passes requests on to its engines, under `/engines/INSTANCE/`."""


def gateway_page() -> str:
    """docs/reference/gateway-api.md."""
    document = asyncio.run(_gateway_document())
    routes = "\n".join(f"- `POST {route.path}`" for route in ROUTES.values())
    parts = [_GATEWAY, "## Inference", _INFERENCE, routes, _HEADERS]
    for title, tags in (
        ("Models and health", {"models", "health"}),
        ("Operator API", {"operator"}),
    ):
        parts += [f"## {title}", *_operations(document, tags)]
    return page("API of the gateway", *parts, *_schemas(document))


async def _gateway_document() -> Schema:
    """A gateway's parts ask for the running loop when they are made."""
    return Gateway(GatewayConfig(), Catalogue()).app.openapi()


def neuron_page() -> str:
    """docs/reference/neuron-api.md."""
    with tempfile.TemporaryDirectory() as state:
        config = NeuronConfig(neuron=NeuronSection(state_dir=Path(state)))
        document = create_app(config, create_runtime(config, sources=())).openapi()
    return page(
        "API of a neuron", _NEURON, "## Calls", *_operations(document, None), *_schemas(document)
    )


def _operations(document: Schema, tags: set[str] | None) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tags is None or tags.intersection(operation.get("tags", ())):
                yield f"### {method.upper()} {path}"
                yield from _operation(operation)


def _operation(operation: Schema) -> Iterator[str]:
    prose = operation.get("description") or operation.get("summary", "")
    takes = [
        f"`{p['name']}` ({p['in']}{', required' if p.get('required') else ''})"
        for p in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        takes.append(f"body {_type(body['schema'])}")
    gives = [
        f"{status} {_type(answer['schema'])}"
        for status, response in operation["responses"].items()
        if status != "422"
        for answer in response.get("content", {}).values()
        if answer.get("schema", {})
    ]
    yield sentence(prose)
    if takes or gives:
        facts = [("Takes", takes), ("Answers", gives)]
        yield "  \n".join(f"{what} {', '.join(found)}." for what, found in facts if found)


def _schemas(document: Schema) -> Iterator[str]:
    """Every object of the document with its fields."""
    yield "## Objects"
    for name, schema in document["components"]["schemas"].items():
        if "ValidationError" in name:
            continue
        prose, told = described(schema.get("description", ""))
        yield f"### {name}"
        # What follows the call that it is an answer of: "GET /health: the latest reading."
        call = _CALL.match(prose)
        if text := prose[call.end() :] if call else prose:
            yield sentence(text)
        if "enum" in schema:
            yield "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + "."
        elif "properties" in schema:
            required = schema.get("required", ())
            yield table(
                ("field", "type", "what it is"),
                (_field(key, inner, told, required) for key, inner in schema["properties"].items()),
            )


def _field(
    name: str, schema: Schema, told: Mapping[str, str], required: list[str]
) -> tuple[str, str, str]:
    text = told.get(name, schema.get("description", ""))
    return f"`{name}`", _type(schema) + (", required" if name in required else ""), text


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(s) for s in schema["anyOf"])
    if schema.get("type") == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_type(items)}"
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{v}`" for v in schema.get("enum", [schema.get("const")]))
    return str(schema.get("type", "anything"))
