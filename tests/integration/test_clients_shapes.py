"""What clients ask beside their conversations: model lists, signs of life, and errors in their own shape."""

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
"""Nobody listens there."""


def key(name: str, **terms: object) -> KeyEntry:
    """A key whose secret is its name."""
    fields = {"name": name, "hash": hash_of(name), "scopes": (Scope.INFER,)} | terms
    return KeyEntry.model_validate(fields)


@dataclass
class InProcessGateway:
    """A data plane with keys, and a client without one."""

    rig: ProxyRig
    http: httpx.AsyncClient


@pytest.fixture
async def served() -> AsyncIterator[InProcessGateway]:
    """A plane with two models and the keys "all" and "few", which may use one of them."""
    ring = Keyring()
    ring.replace((key("all"), key("few", models=("org/small",))), (), 0.0)
    async with (
        scripted_engine() as engine,
        running_proxy(
            {"org/big": engine.url}, model_configs=PROFILES, access_control=AccessControl(ring)
        ) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        yield InProcessGateway(rig, http)


async def test_anthropics_sdk_pages_through_the_models(served: InProcessGateway) -> None:
    """models.list follows the pages, with the context where it is known."""
    async with anthropic.AsyncAnthropic(base_url=served.rig.url, api_key="all") as claude:
        found = [model async for model in claude.models.list(limit=1)]
    assert [(m.id, m.max_input_tokens) for m in found] == [("org/big", 8192), ("org/small", None)]


async def test_a_model_is_told_under_the_name_that_was_asked(served: InProcessGateway) -> None:
    """models.retrieve finds a model by alias and by pattern, for either SDK."""
    url = served.rig.url
    async with anthropic.AsyncAnthropic(base_url=url, api_key="all") as claude:
        assert (await claude.models.retrieve("claude-x-9")).id == "claude-x-9"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="all") as gpt:
        assert (await gpt.models.retrieve("big")).id == "org/big"


async def test_openais_sdk_lists_the_models(served: InProcessGateway) -> None:
    """Without Anthropic's headers the list has what the fleet knows beside OpenAI's fields."""
    async with openai.AsyncOpenAI(base_url=f"{served.rig.url}/v1", api_key="all") as gpt:
        found = {model.id: model async for model in gpt.models.list()}
    assert found["org/big"].model_dump()["state"] == "ready"
    assert found["org/small"].model_dump()["state"] == "unloaded"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/org/big"])
async def test_models_are_probed_without_a_body(served: InProcessGateway, path: str) -> None:
    """HEAD says what GET would, for those who may."""
    bearer = {"authorization": "Bearer all"}
    answer, whole = [await served.http.request(m, path, headers=bearer) for m in ("HEAD", "GET")]
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == whole.headers["content-length"]
    assert (await served.http.head(path)).status_code == 401


async def test_a_key_sees_only_its_models_in_either_shape(served: InProcessGateway) -> None:
    """What a key may not use is neither listed nor found."""
    async with anthropic.AsyncAnthropic(base_url=served.rig.url, api_key="few") as claude:
        assert [model.id async for model in claude.models.list()] == ["org/small"]
        with pytest.raises(anthropic.NotFoundError) as caught:
            await claude.models.retrieve("org/big")
    assert caught.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("path", ["/", "/api/hello"])
async def test_a_sign_of_life_needs_no_key(
    served: InProcessGateway, method: str, path: str
) -> None:
    """Claude Code's first question is answered before it shows who it is, and a load balancer's GET /."""
    answer = await served.http.request(method, path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/files"])
async def test_routes_that_do_not_exist_are_not_found_in_anthropics_shape(
    served: InProcessGateway, path: str
) -> None:
    """Batches and files get a 404 that the SDK can name."""
    answer = await served.http.post(path, json={}, headers=VERSION | {"x-api-key": "all"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert answer.json()["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"]
)
async def test_without_a_key_anthropics_client_is_told_in_its_shape(
    served: InProcessGateway, path: str
) -> None:
    """The guard's 401 reads like Anthropic's, whether the route exists or not."""
    answer = await served.http.post(path, json={"model": "org/big"})
    assert (answer.status_code, answer.json()["type"]) == (401, "error")
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_openais_clients_keep_openais_errors(served: InProcessGateway) -> None:
    """The same mistakes without Anthropic's headers get the usual envelope."""
    answer = await served.http.post("/v1/files", json={}, headers={"authorization": "Bearer all"})
    assert (answer.status_code, answer.json()["error"]["src"]) == (404, "cortex")


@pytest.mark.parametrize("route", ["/v1/messages", "/v1/chat/completions"])
async def test_what_fits_nowhere_is_not_to_be_repeated(
    served: InProcessGateway, route: str
) -> None:
    """A 507 says x-should-retry: false, or SDKs would ask for it again and again."""
    loads = served.rig.loads
    assert loads is not None
    loads.outcome.set_exception(DoesNotFit("org/small needs 9 MiB"))
    body = {"model": "org/small", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    answer = await served.http.post(route, json=body, headers={"x-api-key": "all"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (507, "false")


@pytest.mark.parametrize(
    ("path", "status", "more"),
    [
        ("/v1/chat/completions", 503, {"messages": HI}),
        ("/v1/responses", 503, {"input": "hi"}),
        ("/v1/messages", 529, {"messages": HI, "max_tokens": 9}),
    ],
)
async def test_a_dead_node_is_named_in_the_shape_of_who_asks(
    path: str, status: int, more: dict[str, Any]
) -> None:
    """When the only node that could serve a model is dead, the answer says so at once: which one, and why."""
    async with (
        running_gateway(PROFILES[1], neurons={"beast": DEAD}) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        answer = await http.post(path, json={"model": "org/small"} | more)
    error = answer.json()["error"]

    assert answer.status_code == status
    assert answer.headers["retry-after"] == "5"
    assert "no node that could serve model 'org/small' is reachable: beast: " in error["message"]
    assert "Connection refused" in error["message"]
    if path != "/v1/messages":  # Anthropic's shape has no place for a code of ours
        assert error["code"] == "no_healthy_node"
        assert [r["node"] for r in error["refusals"]] == ["beast"]
