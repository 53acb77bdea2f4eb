"""Model lists, health probes, and errors in each client's format."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from rigs.engine import scripted_engine
from rigs.inprocess_gateway import running_gateway
from rigs.lazy_import import anthropic, openai
from rigs.proxy import ProxyRig, running_proxy

from cortex_common.config.access import KeyEntry
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import DoesNotFit
from cortex_common.schema.keys import Scope
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of

PROFILES = (
    ModelConfig(id="org/big", harness="embedded", context=8192, aliases=("claude-*", "big")),
    ModelConfig(id="org/small", harness="embedded"),
)
VERSION = {"anthropic-version": "2023-06-01"}
HI = [{"role": "user", "content": "hi"}]
DEAD = "http://127.0.0.1:1"
"""No server listens there."""


def key(name: str, **fields: object) -> KeyEntry:
    """Return a key whose secret is its name."""
    values = {"name": name, "hash": hash_of(name), "scopes": (Scope.INFER,)} | fields
    return KeyEntry.model_validate(values)


@dataclass
class ProxyWithKeys:
    """A gateway with keys, and a client without one."""

    rig: ProxyRig
    http: httpx.AsyncClient


@pytest.fixture
async def served() -> AsyncIterator[ProxyWithKeys]:
    """Run a gateway with two models and the keys "all" and "few", which can use one of them."""
    ring = Keyring()
    ring.replace((key("all"), key("few", models=("org/small",))), (), 0.0)
    async with (
        scripted_engine() as engine,
        running_proxy(
            {"org/big": engine.url}, model_configs=PROFILES, access_control=AccessControl(ring)
        ) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        yield ProxyWithKeys(rig, http)


@pytest.mark.compatibility("anthropic (Python)", "models")
async def test_anthropic_sdk_pages_through_the_models(served: ProxyWithKeys) -> None:
    """models.list follows the pages, with the context if known."""
    async with anthropic.AsyncAnthropic(base_url=served.rig.url, api_key="all") as claude:
        models = [model async for model in claude.models.list(limit=1)]
    assert [(m.id, m.max_input_tokens) for m in models] == [("org/big", 8192), ("org/small", None)]


async def test_model_is_found_by_alias_and_pattern(served: ProxyWithKeys) -> None:
    """models.retrieve works for both SDKs."""
    url = served.rig.url
    async with anthropic.AsyncAnthropic(base_url=url, api_key="all") as claude:
        assert (await claude.models.retrieve("claude-x-9")).id == "claude-x-9"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="all") as gpt:
        assert (await gpt.models.retrieve("big")).id == "org/big"


@pytest.mark.compatibility("openai (Python)", "models")
async def test_openai_sdk_lists_the_models(served: ProxyWithKeys) -> None:
    """Without Anthropic's headers, entries have the model's state besides OpenAI's fields."""
    async with openai.AsyncOpenAI(base_url=f"{served.rig.url}/v1", api_key="all") as gpt:
        models = {model.id: model async for model in gpt.models.list()}
    assert models["org/big"].model_dump()["state"] == "ready"
    assert models["org/small"].model_dump()["state"] == "unloaded"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/org/big"])
async def test_head_of_models(served: ProxyWithKeys, path: str) -> None:
    """HEAD returns the headers of GET, with the same authorization."""
    bearer = {"authorization": "Bearer all"}
    head, get = [await served.http.request(m, path, headers=bearer) for m in ("HEAD", "GET")]
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert (await served.http.head(path)).status_code == 401


async def test_key_sees_only_its_models(served: ProxyWithKeys) -> None:
    """Models that the key can't use are neither listed nor found."""
    async with anthropic.AsyncAnthropic(base_url=served.rig.url, api_key="few") as claude:
        assert [model.id async for model in claude.models.list()] == ["org/small"]
        with pytest.raises(anthropic.NotFoundError) as caught:
            await claude.models.retrieve("org/big")
    assert caught.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("path", ["/", "/api/hello"])
async def test_hello_needs_no_key(served: ProxyWithKeys, method: str, path: str) -> None:
    """Claude Code's startup probe, sent without credentials, and a load balancer's GET / are answered."""
    response = await served.http.request(method, path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/files"])
async def test_unknown_routes_are_404_in_anthropic_format(served: ProxyWithKeys, path: str) -> None:
    """Batches and files get a 404 that the SDK can parse."""
    response = await served.http.post(path, json={}, headers=VERSION | {"x-api-key": "all"})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    assert response.json()["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"]
)
async def test_missing_key_is_401_in_anthropic_format(served: ProxyWithKeys, path: str) -> None:
    """The 401 is in Anthropic's format, whether or not the route exists."""
    response = await served.http.post(path, json={"model": "org/big"})
    assert (response.status_code, response.json()["type"]) == (401, "error")
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_unknown_route_is_404_in_openai_format(served: ProxyWithKeys) -> None:
    """Without Anthropic's headers, errors are in OpenAI's format."""
    response = await served.http.post("/v1/files", json={}, headers={"authorization": "Bearer all"})
    assert (response.status_code, response.json()["error"]["src"]) == (404, "cortex")


@pytest.mark.parametrize("route", ["/v1/messages", "/v1/chat/completions"])
async def test_507_is_not_retried(served: ProxyWithKeys, route: str) -> None:
    """It has x-should-retry: false, because SDKs would retry it repeatedly."""
    loads = served.rig.loads
    assert loads is not None
    loads.outcome.set_exception(DoesNotFit("org/small needs 9 MiB"))
    body = {"model": "org/small", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    response = await served.http.post(route, json=body, headers={"x-api-key": "all"})
    assert (response.status_code, response.headers["x-should-retry"]) == (507, "false")


@pytest.mark.parametrize(
    ("path", "status", "more"),
    [
        ("/v1/chat/completions", 503, {"messages": HI}),
        ("/v1/responses", 503, {"input": "hi"}),
        ("/v1/messages", 529, {"messages": HI, "max_tokens": 9}),
    ],
)
async def test_unreachable_node_is_named_in_the_client_format(
    path: str, status: int, more: dict[str, Any]
) -> None:
    """If the only node that could serve a model is unreachable, the error names the node and the reason immediately."""
    async with (
        running_gateway(PROFILES[1], neurons={"beast": DEAD}) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        response = await http.post(path, json={"model": "org/small"} | more)
    error = response.json()["error"]

    assert response.status_code == status
    assert response.headers["retry-after"] == "5"
    assert "no node that could serve model 'org/small' is reachable: beast: " in error["message"]
    assert "Connection refused" in error["message"]
    if path != "/v1/messages":  # Anthropic's format has no field for our error code
        assert error["code"] == "no_healthy_node"
        assert [r["node"] for r in error["refusals"]] == ["beast"]
