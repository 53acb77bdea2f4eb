"""Scopes, keys and limits on a live gateway: every scope against every route, from the table that is enforced."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest
from rigs.engine import Call, answer_stream, scripted_engine
from rigs.inprocess_gateway import running_gateway
from rigs.lazy_import import anthropic, openai
from rigs.proxy import running_proxy

from cortex_common.client.gateway import OperatorClient
from cortex_common.config.access import KeyEntry, LimitsSection
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.keys import CreateKeyRequest, Scope
from cortex_server.auth.access_control import AccessControl, Caller, Place
from cortex_server.auth.keys import Keyring, hash_of
from cortex_server.auth.permissions import rule_for
from cortex_server.main import Gateway
from cortex_server.proxy.routes import ROUTES

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
FROM_ANOTHER_HOST = {"x-forwarded-for": "203.0.113.7"}
"""Headers of a client on another host, as a reverse proxy on this one sends them."""


def key(name: str, *scopes: Scope, **terms: object) -> KeyEntry:
    """Return a key whose secret is its name."""
    fields = {"name": name, "hash": hash_of(name), "scopes": scopes or (Scope.INFER,)} | terms
    return KeyEntry.model_validate(fields)


def routes_of(gateway: Gateway) -> list[tuple[str, str]]:
    """Return every method and path that the gateway serves, from its own OpenAPI description."""
    paths = gateway.app.openapi()["paths"]
    documented = [(m.upper(), path) for path, methods in paths.items() for m in methods]
    return [
        *documented,
        *(("POST", route.path) for route in ROUTES.values()),
        ("GET", "/openapi.json"),
        ("GET", "/nothing/here"),
        ("PUT", CHAT),
    ]


async def test_every_scope_against_every_route():
    """A request is authorized exactly where the table says so."""
    keys = (
        *(key(scope.value, scope) for scope in Scope),
        key("old", *Scope, expires="2001-01-01"),
    )
    callers = {scope.value: {scope} for scope in Scope} | {"": set(), "wrong": set(), "old": set()}
    async with running_gateway(keys=keys) as served, httpx.AsyncClient(base_url=served.url) as http:
        requests = 0
        for method, path in routes_of(served.gateway):
            if path == "/operator/v1/events":
                continue  # an endless stream; the next test covers it
            filled = path.replace("{name}", "x").replace("{model}", "x").replace("{node}", "x")
            for caller, scopes in callers.items():
                headers = {"authorization": f"Bearer {caller}"} if caller else {}
                answer = await http.request(method, filled, headers=headers, content=b"{}")
                needed = rule_for(method, filled).scopes
                allowed = not needed or bool(needed & scopes)
                assert (answer.status_code not in {401, 403}) is allowed, (method, path, caller)
                if not allowed:
                    assert answer.status_code == (403 if scopes else 401), (method, path, caller)
                    assert answer.json()["error"]["message"]
                requests += 1
        assert requests > 100


async def test_the_event_stream_of_the_operator_api_needs_the_scope():
    """The stream is rejected without the scope and sent with it."""
    async with (
        running_gateway(keys=(key("op", Scope.OPERATOR), key("inf"))) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        for secret, status in (("inf", 403), ("", 401), ("op", 200)):
            headers = {"x-api-key": secret}
            async with http.stream("GET", "/operator/v1/events", headers=headers) as answer:
                assert answer.status_code == status


async def test_the_metrics_listener_requires_its_scope():
    """Other keys, and requests without one, are rejected on the metrics port."""
    async with (
        running_gateway(keys=(key("met", Scope.METRICS), key("op", Scope.OPERATOR))) as served,
        httpx.AsyncClient(base_url=served.metrics_url) as http,
    ):
        found = {}
        for secret in ("met", "op", ""):
            headers = {"x-api-key": secret}
            found[secret] = (await http.get("/metrics", headers=headers)).status_code
        assert found == {"met": 200, "op": 403, "": 401}


@pytest.mark.parametrize(
    ("insecure", "statuses"),
    [
        (False, {CHAT: 401, "/operator/v1/fleet": 401}),
        (True, {CHAT: 404, "/operator/v1/fleet": 401}),
    ],
)
async def test_without_keys_other_hosts_are_rejected(insecure, statuses):
    """Other hosts can use models only with --insecure, and never the operator API over TCP."""
    async with (
        running_gateway(insecure=insecure) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        for path, status in statuses.items():
            method = "POST" if path == CHAT else "GET"
            remote = await http.request(method, path, json=BODY, headers=FROM_ANOTHER_HOST)
            local = await http.request(method, path, json=BODY)
            assert remote.status_code == status
            assert local.status_code == (404 if path == CHAT else 401)
        assert (await http.get("/health", headers=FROM_ANOTHER_HOST)).status_code == 200
        assert (await http.head("/health", headers=FROM_ANOTHER_HOST)).status_code == 200


async def test_a_key_is_created_used_listed_and_revoked_at_run_time(tmp_path):
    """A key is valid from its creation until it is revoked, across a restart of the gateway."""
    models = (ModelConfig(id="m", harness="none"), ModelConfig(id="other", harness="none"))
    secret = ""
    for run in range(2):
        async with (
            running_gateway(*models, state_dir=tmp_path) as served,
            OperatorClient(served.url, who="the gateway") as operator,
            httpx.AsyncClient(base_url=served.url) as http,
        ):
            if run == 0:
                created = await operator.create_key(CreateKeyRequest(name="alice", models=("m",)))
                secret = created.secret
                with pytest.raises(CortexError, match="already exists"):
                    await operator.create_key(CreateKeyRequest(name="alice"))
            headers = {"authorization": f"Bearer {secret}"}
            assert [k.name for k in await operator.keys()] == ["alice"]
            listed = (await http.get("/v1/models", headers=headers)).json()
            assert [m["id"] for m in listed["data"]] == ["m"]
            refused = await http.post(CHAT, json=BODY | {"model": "other"}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (403, "model")
            assert (await http.post(CHAT, json=BODY)).status_code == 401
            if run == 1:
                await operator.revoke_key("alice")
                assert await operator.keys() == ()
                assert (
                    await http.get("/v1/models", headers=FROM_ANOTHER_HOST | headers)
                ).status_code == 401
                with pytest.raises(CortexError, match="no key 'alice'"):
                    await operator.revoke_key("alice")
    assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())


async def test_a_key_for_an_alias_lists_the_model_under_that_alias():
    """Every name that /v1/models lists can be used with the key."""
    model = ModelConfig(id="org/m", harness="none", aliases=("gpt", "mini", "claude-*"))
    keys = (
        key("one", models=["gpt"]),
        key("all", models=["org/*"]),
        key("some", models=["claude-*"]),
    )
    async with (
        running_gateway(model, keys=keys) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        listed = {}
        for name in ("one", "all", "some"):
            answer = await http.get("/v1/models", headers={"authorization": f"Bearer {name}"})
            listed[name] = [m["id"] for m in answer.json()["data"]]
        assert listed == {"one": ["gpt"], "all": ["org/m"], "some": []}
        found = {
            name: (await http.get(f"/v1/models/{name}", headers={"x-api-key": "one"})).status_code
            for name in ("gpt", "mini", "org/m")
        }
        assert found == {"gpt": 200, "mini": 404, "org/m": 404}


async def test_a_path_of_another_base_url_works():
    """Without /v1, with two of them, and with doubled or trailing slashes; the same key is required, no redirect."""
    post = [
        "/chat/completions",
        "//v1/chat/completions",
        f"{CHAT}/",
        "/v1/v1/messages",
        "/messages",
    ]
    get = ["/models", "//models", "/v1/models/", "/v1//models", "/v1/v1/models"]
    async with (
        running_gateway(keys=(key("good"),)) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        headers = {"authorization": "Bearer good"}
        for method, paths, status in (("POST", post, 400), ("GET", get, 200)):
            for path in paths:
                url = f"{served.url}{path}"
                found = await http.request(method, url, headers=headers)
                refused = await http.request(method, url)
                assert (found.status_code, refused.status_code) == (status, 401), path


async def test_a_wrong_base_url_gets_a_suggestion():
    """What can't be meant otherwise is reported as such, not as a missing scope."""
    async with (
        running_gateway(keys=(key("good"),)) as served,
        httpx.AsyncClient() as http,
    ):
        url = f"{served.url}{CHAT}/chat/completions"
        answer = await http.post(url, headers={"authorization": "Bearer good"})
        assert answer.status_code == 404
        assert f"did you mean {CHAT}?" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [CHAT, "/chat/completions/", "/v1/messages", "/rerank"])
async def test_another_method_is_rejected_with_allow(method: str, path: str):
    """RFC 9110, 15.5.6: a 405 says which methods are allowed."""
    async with (
        running_gateway(keys=(key("good"),)) as served,
        httpx.AsyncClient(headers={"authorization": "Bearer good"}) as http,
    ):
        answer = await http.request(method, f"{served.url}{path}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        other = await http.request("DELETE", f"{served.url}/v1/models")
        assert (other.status_code, "GET" in other.headers["allow"]) == (405, True)


async def test_an_api_request_to_the_metrics_listener_gets_a_hint() -> None:
    """The error explains that this is not the address of the API."""
    async with running_gateway() as served, httpx.AsyncClient() as http:
        answer = await http.post(f"{served.metrics_url}{CHAT}")
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["message"] == f"there is no {CHAT} on the metrics listener"
        assert "listen" in error["hints"][0]


async def test_a_configured_key_cannot_be_revoked_at_run_time():
    """The error says where the key is defined."""
    async with (
        running_gateway(keys=(key("fixed"),)) as served,
        OperatorClient(served.url, who="the gateway") as operator,
    ):
        with pytest.raises(CortexError, match=r"cortex\.toml"):
            await operator.revoke_key("fixed")


def access_with(*keys: KeyEntry) -> AccessControl:
    """Return an access control with these keys."""
    keyring = Keyring()
    keyring.replace(keys, (), 0.0)
    return AccessControl(keyring)


async def test_openais_sdk_raises_its_own_errors():
    """The SDK raises its own classes for an invalid key, a forbidden model and a limit, with Retry-After."""
    access_control = access_with(key("good", models=["m"], limits={"requests_per_minute": 1}))
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url, "n": engine.url}, access_control=access_control) as rig,
    ):

        async def send(secret: str, model: str) -> None:
            base = f"{rig.url}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key=secret, max_retries=0) as sdk:
                stream = await sdk.chat.completions.create(
                    model=model, messages=BODY["messages"], stream=True
                )
                assert [chunk async for chunk in stream]

        with pytest.raises(openai.AuthenticationError):
            await send("bad", "m")
        await send("good", "m")
        with pytest.raises(openai.RateLimitError) as caught:
            await send("good", "m")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        access_control.keyring.replace([key("good", models=["m"])], (), 0.0)
        with pytest.raises(openai.PermissionDeniedError):
            await send("good", "n")
        await rig.wait_idle()
        assert access_control.keyring.get("good").account.in_flight == 0


async def test_anthropics_sdk_raises_its_own_errors():
    """On /v1/messages an invalid key, a forbidden model and a limit are Anthropic's errors with the right type."""
    access_control = access_with(key("good", models=["m"], limits={"requests_per_minute": 2}))
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url, "n": engine.url}, access_control=access_control) as rig,
    ):

        async def send(secret: str, model: str) -> str:
            async with anthropic.AsyncAnthropic(
                base_url=rig.url, api_key=secret, max_retries=0
            ) as sdk:
                answer = await sdk.messages.create(
                    model=model, max_tokens=9, messages=BODY["messages"]
                )
            return answer.type

        with pytest.raises(anthropic.AuthenticationError) as bad:
            await send("bad", "m")
        assert bad.value.body["error"]["type"] == "authentication_error"
        with pytest.raises(anthropic.PermissionDeniedError) as forbidden:
            await send("good", "n")
        assert forbidden.value.body["error"]["type"] == "permission_error"
        assert await send("good", "m") == "message"
        with pytest.raises(anthropic.RateLimitError) as limited:
            await send("good", "m")
        assert limited.value.body["error"]["type"] == "rate_limit_error"
        assert int(limited.value.response.headers["retry-after"]) >= 1


async def test_limits_hold_under_concurrency():
    """Of forty concurrent requests with a limit of five, exactly five reach the engine and the others get 429."""
    release = asyncio.Event()

    async def hold(call: Call) -> None:
        await release.wait()
        await answer_stream(call)

    access_control = access_with(key("k", limits={"max_in_flight": 5}))
    async with (
        scripted_engine(hold) as engine,
        running_proxy({"m": engine.url}, access_control=access_control) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"x-api-key": "k"}, timeout=30) as http,
    ):
        tasks = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(40)]
        await engine.call(4)
        while sum(task.done() for task in tasks) < 35:
            await asyncio.wait(
                [t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED
            )
        release.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*tasks)]
        assert (statuses.count(200), statuses.count(429)) == (5, 35)
        assert len(engine.calls) == 5
        await rig.wait_idle()
        assert access_control.keyring.get("k").account.in_flight == 0
        assert {entry.line().key for entry in rig.context.access_log.entries} == {"k"}


async def test_a_gateway_at_capacity_queues_some_and_rejects_the_rest():
    """With one admitted and two queued, the fourth request gets 429 immediately; the others succeed."""
    release = asyncio.Semaphore(0)

    async def hold(call: Call) -> None:
        await release.acquire()
        await answer_stream(call)

    async with (
        scripted_engine(hold) as engine,
        running_proxy(
            {"m": engine.url}, limits=LimitsSection(max_in_flight=1, max_queued=2)
        ) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        first = asyncio.create_task(http.post(CHAT, json=BODY))
        await engine.call(0)
        queued = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(2)]
        async with asyncio.timeout(5):
            while rig.context.admission.queued < 2:
                await asyncio.sleep(0)
        refused = await http.post(CHAT, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert refused.headers["retry-after"] == "1"
        assert len(engine.calls) == 1
        for _ in range(3):
            release.release()
        answers = await asyncio.gather(first, *queued)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert answers[1].headers["x-cortex-queue-ms"].isdigit()
        await rig.wait_idle()
        assert rig.context.admission.admitted == 0


async def test_a_queue_timeout_is_logged_with_its_wait():
    """The access log has the time in the queue of a request that reached no instance."""
    limits = LimitsSection(max_in_flight=1, max_queued=1, queue_timeout_s=0.05)
    async with (
        scripted_engine(lambda call: call.wait_closed()) as engine,
        running_proxy({"m": engine.url}, limits=limits) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        first = asyncio.create_task(http.post(CHAT, json=BODY))
        await engine.call(0)
        assert (await http.post(CHAT, json=BODY)).status_code == 429
        (timed_out,) = rig.context.access_log.entries
        assert timed_out.line().queue_ms >= 50
        first.cancel()


async def test_a_queued_request_is_removed_when_its_client_disconnects():
    """Neither the queue nor the admitted requests keep a disconnected client."""
    async with (
        scripted_engine(lambda call: call.wait_closed()) as engine,
        running_proxy({"m": engine.url}, limits=LimitsSection(max_in_flight=1)) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        tasks = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(2)]
        async with asyncio.timeout(5):
            while rig.context.admission.queued < 1:
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await rig.wait_idle()
        assert (rig.context.admission.admitted, rig.context.admission.queued) == (0, 0)
        assert len(engine.calls) <= 2


async def test_usage_is_counted_by_key_and_model():
    """Tokens that the engine counted are added to the usage of the key immediately."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}, access_control=access_with(key("a"), key("b"))) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        for secret, times in (("a", 2), ("b", 1)):
            for _ in range(times):
                await http.post(CHAT, json=BODY, headers={"x-api-key": secret})
        await rig.wait_idle()
        counts = rig.context.access_control.usage.take()
        assert {k: (u.requests, u.tokens_in, u.tokens_out) for k, u in counts.items()} == {
            ("a", "m"): (2, 14, 6),
            ("b", "m"): (1, 7, 3),
        }


async def test_a_rejected_client_keeps_its_connection():
    """A client at its limit gets 429 repeatedly on one connection, whether or not the body comes with the head."""
    access_control = access_with(key("k", limits={"requests_per_minute": 1}))
    access_control.admit([(b"x-api-key", b"k")], Caller(Place.ELSEWHERE))
    body = json.dumps(BODY).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: {len(body)}\r\n\r\n"
    async with (
        running_proxy({}, access_control=access_control) as rig,
        asyncio.timeout(10),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        for pieces in ((head.encode() + body,), (head.encode(), body[:9], body[9:])):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)  # so that each piece is a separate read
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 429 ")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()


async def test_a_limited_key_gets_the_model_that_was_checked() -> None:
    """Bodies in which engines could find another model are refused; one from the query reaches the engine."""
    bodies = (
        b'{"model":"gpt","model":"secret","prompt":"x"}',
        b'{"\\u006dodel":"secret","model":"gpt","prompt":"x"}',
        b'{"model":"gpt","MODEL":"secret","prompt":"x"}',
    )
    keyring = Keyring()
    limited = KeyEntry(name="k", hash=hash_of("k"), models=("gpt",))
    keyring.replace([limited], (), time.monotonic())
    async with (
        scripted_engine() as engine,
        running_proxy(
            {"gpt": engine.url, "secret": engine.url}, access_control=AccessControl(keyring)
        ) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"authorization": "Bearer k"}) as http,
    ):
        for body in bodies:
            answer = await http.post("/v1/completions", content=body)
            assert (answer.status_code, len(engine.calls)) == (400, 0), body
        await http.post("/v1/completions?model=gpt", json={"prompt": "x", "stream": True})
        assert json.loads(engine.calls[0].body)["model"] == "gpt"
