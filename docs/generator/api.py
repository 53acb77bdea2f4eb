"""The references of both HTTP APIs, generated from their OpenAPI documents."""

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
from cortex_common.net.trusted_hosts import TrustedHosts
from cortex_server.gateway import Gateway
from cortex_server.proxy.routes import ROUTES
from generator.text import described, page, sentence, table
from neuron_server.api import create_app
from neuron_server.main import create_runtime

Schema = dict[str, Any]

_CALL = re.compile(r"(Response to )?(GET|POST|DELETE) /\S+?(\.$|: )", re.MULTILINE)

_GATEWAY = """The gateway serves its OpenAPI document at `/openapi.json`. See [Scopes](scopes.md) for the keys that each
route requires, and [Errors](errors.md) for the error codes."""
_INFERENCE = """These routes accept the same requests as the OpenAI and Anthropic APIs. `model` can be any name or alias
in models.toml. If the engine of a model does not support a route, the response has status 501."""
_HEADERS = """Requests can have the headers `X-Cortex-Session` (requests of one session are sent to the instance that
has them cached), `X-Cortex-Priority` (`1` to `9`, limited by the key's `max_priority`), `X-Request-Id` and
`traceparent`. Responses have these headers:

| header | meaning |
|---|---|
| `x-request-id` | id of the request, as in logs and for `cortex why` |
| `x-cortex-node`, `x-cortex-instance` | node and instance that processed the request |
| `x-cortex-cold-start` | whether the request waited for a load |
| `x-cortex-queue-ms` | milliseconds that the request waited; missing if comments were sent while it waited |
| `x-cortex-route` | why this instance was chosen |"""
_NEURON = """A neuron listens on port 9090. Every request must send its token as `Authorization: Bearer ...`. It serves
its OpenAPI document at `/openapi.json`. The API is used by gateways, not by clients. A neuron that does not listen on
loopback also relays inference requests to its engines, under `/engines/INSTANCE/`."""


def gateway_page() -> str:
    """Return the text of docs/reference/gateway-api.md."""
    document = asyncio.run(_gateway_document())
    routes = "\n".join(f"- `POST {route.path}`" for route in ROUTES.values())
    parts = [_GATEWAY, "## Inference", _INFERENCE, routes, _HEADERS]
    for title, tags in (
        ("Models and health", {"models", "health"}),
        ("Operator API", {"operator"}),
    ):
        parts += [f"## {title}", *_operations(document, tags)]
    return page("Gateway API", *parts, *_schemas(document))


async def _gateway_document() -> Schema:
    # A coroutine, because parts of a gateway need a running event loop when they are created.
    return Gateway(GatewayConfig(), Catalogue()).app.openapi()


def neuron_page() -> str:
    """Return the text of docs/reference/neuron-api.md."""
    with tempfile.TemporaryDirectory() as state:
        config = NeuronConfig(neuron=NeuronSection(state_dir=Path(state)))
        document = create_app(
            create_runtime(config, sources=()), relay=None, trusted=TrustedHosts("neuron")
        ).openapi()
    return page(
        "Neuron API", _NEURON, "## Routes", *_operations(document, None), *_schemas(document)
    )


def _operations(document: Schema, tags: set[str] | None) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tags is None or tags.intersection(operation.get("tags", ())):
                yield f"### {method.upper()} {path}"
                yield from _operation(operation)


def _operation(operation: Schema) -> Iterator[str]:
    prose = operation.get("description") or operation.get("summary", "")
    parameters = [
        f"`{p['name']}` ({p['in']}{', required' if p.get('required') else ''})"
        for p in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        parameters.append(f"body {_type(body['schema'])}")
    responses = [
        f"{status} {_type(content['schema'])}"
        for status, response in operation["responses"].items()
        if status != "422"
        for content in response.get("content", {}).values()
        if content.get("schema", {})
    ]
    yield sentence(prose)
    if parameters or responses:
        lists = [("Parameters", parameters), ("Responses", responses)]
        yield "  \n".join(f"{title}: {', '.join(items)}." for title, items in lists if items)


def _schemas(document: Schema) -> Iterator[str]:
    """Yield all objects of the document with their fields."""
    yield "## Objects"
    for name, schema in document["components"]["schemas"].items():
        if "ValidationError" in name:
            continue
        prose, descriptions = described(schema.get("description", ""))
        yield f"### {name}"
        # Skip the route that the object belongs to: "GET /health: the latest readings."
        call = _CALL.match(prose)
        if text := prose[call.end() :] if call else prose:
            yield sentence(text)
        if "enum" in schema:
            yield "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + "."
        elif "properties" in schema:
            required = schema.get("required", ())
            yield table(
                ("field", "type", "description"),
                (
                    _field(key, inner, descriptions, required)
                    for key, inner in schema["properties"].items()
                ),
            )


def _field(
    name: str, schema: Schema, descriptions: Mapping[str, str], required: list[str]
) -> tuple[str, str, str]:
    text = descriptions.get(name, schema.get("description", ""))
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
