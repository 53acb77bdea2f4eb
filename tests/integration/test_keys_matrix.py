"""Every scope against every route of a live gateway, from the table that is enforced."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from rigs.engine import Call, answer_stream, scripted_engine
from rigs.late import anthropic, openai
from rigs.proxy import FACES, running_plane
from rigs.whole import running_gateway

from cortex_common.client.gateway import OperatorClient
from cortex_common.config.access import KeyEntry, LimitsSection, Scope
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.keys import CreateKey
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of
from cortex_server.auth.permissions import rule_for
from cortex_server.main import Gateway
from cortex_server.proxy.routes import ROUTES

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
ELSEWHERE = {"x-forwarded-for": "203.0.113.7"}
"""A client of another host, as a proxy on this one passes it on."""


def key(name: str, *scopes: Scope, **terms: object) -> KeyEntry:
    """A key whose secret is its name."""
    fields = {"name": name, "hash": hash_of(name), "scopes": scopes or (Scope.INFER,)} | terms
    return KeyEntry.model_validate(fields)


def routes_of(gateway: Gateway) -> list[tuple[str, str]]:
    """Every method and path that the gateway answers, from its own description."""
    described = gateway.app.openapi()["paths"]
    listed = [(m.upper(), path) for path, methods in described.items() for m in methods]
    return [
        *listed,
        *(("POST", route.path) for route in ROUTES.values()),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nothing/here"),
        ("PUT", CHAT),
    ]


async def test_every_scope_against_every_route():
    """A caller gets past the gate where the table says so, and nowhere else."""
    keys = (
        *(key(scope.value, scope) for scope in Scope),
        key("old", *Scope, expires="2001-01-01"),
    )
    callers = {scope.value: {scope} for scope in Scope} | {"": set(), "wrong": set(), "old": set()}
    async with running_gateway(keys=keys) as served, httpx.AsyncClient(base_url=served.url) as http:
        asked = 0
        for method, path in routes_of(served.gateway):
            if path == "/operator/v1/events":
                continue  # it answers without end; the next test has it
            filled = path.replace("{name}", "x").replace("{model}", "x").replace("{node}", "x")
            for caller, scopes in callers.items():
                headers = {"authorization": f"Bearer {caller}"} if caller else {}
                answer = await http.request(method, filled, headers=headers, content=b"{}")
                needed = rule_for(method, filled).scopes
                opened = not needed or bool(needed & scopes)
                assert (answer.status_code not in {401, 403}) is opened, (method, path, caller)
                if not opened:
                    assert answer.status_code == (403 if scopes else 401), (method, path, caller)
                    assert answer.json()["error"]["message"]
                asked += 1
        assert asked > 100


async def test_the_event_stream_of_the_operator_api_needs_the_scope():
    """Refused without it, open with it."""
    async with (
        running_gateway(keys=(key("op", Scope.OPERATOR), key("inf"))) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        for secret, status in (("inf", 403), ("", 401), ("op", 200)):
            headers = {"x-api-key": secret}
            async with http.stream("GET", "/operator/v1/events", headers=headers) as answer:
                assert answer.status_code == status


async def test_the_metrics_listener_asks_for_its_scope():
    """Any other key, and none, is refused on the metrics port."""
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
async def test_without_keys_other_hosts_reach_nothing(insecure, statuses):
    """Another host may ask no model unless --insecure, and may never operate; this host may both."""
    async with (
        running_gateway(insecure=insecure) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        for path, status in statuses.items():
            method = "POST" if path == CHAT else "GET"
            far = await http.request(method, path, json=BODY, headers=ELSEWHERE)
            near = await http.request(method, path, json=BODY)
            assert far.status_code == status
            assert near.status_code in {200, 404}
        assert (await http.get("/health", headers=ELSEWHERE)).status_code == 200
        assert (await http.head("/health", headers=ELSEWHERE)).status_code == 200


async def test_a_key_is_made_used_listed_and_revoked_at_run_time(tmp_path):
    """A key works from the answer that made it until it is revoked, also over a restart of the gateway."""
    models = (ModelConfig(id="m", harness="none"), ModelConfig(id="other", harness="none"))
    secret = ""
    for life in range(2):
        async with (
            running_gateway(*models, state_dir=tmp_path) as served,
            OperatorClient(served.url, who="the gateway") as operator,
            httpx.AsyncClient(base_url=served.url) as http,
        ):
            if life == 0:
                made = await operator.create_key(CreateKey(name="alice", models=("m",)))
                secret = made.secret
                with pytest.raises(CortexError, match="already"):
                    await operator.create_key(CreateKey(name="alice"))
            headers = {"authorization": f"Bearer {secret}"}
            assert [k.name for k in await operator.keys()] == ["alice"]
            listed = (await http.get("/v1/models", headers=headers)).json()
            assert [m["id"] for m in listed["data"]] == ["m"]
            refused = await http.post(CHAT, json=BODY | {"model": "other"}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (403, "model")
            assert (await http.post(CHAT, json=BODY)).status_code == 401
            if life == 1:
                await operator.revoke_key("alice")
                assert await operator.keys() == ()
                assert (
                    await http.get("/v1/models", headers=ELSEWHERE | headers)
                ).status_code == 401
                with pytest.raises(CortexError, match="no key 'alice'"):
                    await operator.revoke_key("alice")
    assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())


async def test_a_key_for_an_alias_lists_the_model_under_the_name_that_it_may_use():
    """What /v1/models shows can be asked for: clients choose from it."""
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


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", CHAT),
        ("//v1/chat/completions", CHAT),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/chat/completions/chat/completions", CHAT),
        ("/models", "/v1/models"),
    ],
)
async def test_a_wrong_base_url_is_told_as_such(path: str, meant: str):
    """Whoever forgets /v1 hears of that, not of a scope that would not help."""
    async with (
        running_gateway(keys=(key("good"),)) as served,
        httpx.AsyncClient() as http,
    ):
        answer = await http.post(f"{served.url}{path}", headers={"authorization": "Bearer good"})
        assert answer.status_code == 404
        assert f"did you mean {meant}?" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "meant"), [("POST", CHAT), ("GET", "/v1/models")])
async def test_a_slash_too_many_is_told_and_never_redirected(method: str, meant: str):
    """Behind a proxy that ends TLS a redirect would lead to where nobody listens."""
    async with (
        running_gateway(keys=(key("good"),)) as served,
        httpx.AsyncClient(headers={"authorization": "Bearer good"}) as http,
    ):
        answer = await http.request(method, f"{served.url}{meant}/")
        assert answer.status_code == 404
        assert f"did you mean {meant}?" in answer.json()["error"]["message"]


async def test_a_request_to_the_metrics_listener_is_told_where_it_is() -> None:
    """Two addresses stand in cortex.toml side by side, and one is easily taken for the other."""
    async with running_gateway() as served, httpx.AsyncClient() as http:
        answer = await http.post(f"{served.metrics_url}{CHAT}")
        assert answer.status_code == 404
        told = answer.json()["error"]
        assert told["message"] == f"there is no {CHAT} here, where the metrics are"
        assert "listen" in told["hints"][0]


async def test_a_key_of_the_configuration_is_not_revoked_at_run_time():
    """The operator is told where it stands."""
    async with (
        running_gateway(keys=(key("fixed"),)) as served,
        OperatorClient(served.url, who="the gateway") as operator,
    ):
        with pytest.raises(CortexError, match=r"cortex\.toml"):
            await operator.revoke_key("fixed")


def ring_of(*keys: KeyEntry) -> AccessControl:
    """A gate with these keys."""
    ring = Keyring()
    ring.replace(keys, (), 0.0)
    return AccessControl(ring)


@pytest.mark.parametrize("face", FACES)
async def test_the_official_sdk_sees_its_own_errors(face):
    """The SDK raises its classes for a bad key, a forbidden model and a limit, and Retry-After is there."""
    access_control = ring_of(key("good", models=["m"], limits={"requests_per_minute": 1}))
    async with (
        scripted_engine() as engine,
        running_plane(
            {"m": engine.url, "n": engine.url}, face=face, access_control=access_control
        ) as rig,
    ):

        async def ask(secret: str, model: str) -> None:
            base = f"{rig.url}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key=secret, max_retries=0) as sdk:
                stream = await sdk.chat.completions.create(
                    model=model, messages=BODY["messages"], stream=True
                )
                assert [chunk async for chunk in stream]

        with pytest.raises(openai.AuthenticationError):
            await ask("bad", "m")
        await ask("good", "m")
        with pytest.raises(openai.RateLimitError) as caught:
            await ask("good", "m")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        access_control.keyring.replace([key("good", models=["m"])], (), 0.0)
        with pytest.raises(openai.PermissionDeniedError):
            await ask("good", "n")
        await rig.settled()
        assert access_control.keyring.get("good").account.in_flight == 0


async def test_anthropics_sdk_sees_its_own_errors():
    """Over /v1/messages a bad key, a forbidden model and a limit are Anthropic's errors, each with its type."""
    access_control = ring_of(key("good", models=["m"], limits={"requests_per_minute": 2}))
    async with (
        scripted_engine() as engine,
        running_plane({"m": engine.url, "n": engine.url}, access_control=access_control) as rig,
    ):

        async def ask(secret: str, model: str) -> str:
            async with anthropic.AsyncAnthropic(
                base_url=rig.url, api_key=secret, max_retries=0
            ) as sdk:
                answer = await sdk.messages.create(
                    model=model, max_tokens=9, messages=BODY["messages"]
                )
            return answer.type

        with pytest.raises(anthropic.AuthenticationError) as bad:
            await ask("bad", "m")
        assert bad.value.body["error"]["type"] == "authentication_error"
        with pytest.raises(anthropic.PermissionDeniedError) as forbidden:
            await ask("good", "n")
        assert forbidden.value.body["error"]["type"] == "permission_error"
        assert await ask("good", "m") == "message"
        with pytest.raises(anthropic.RateLimitError) as limited:
            await ask("good", "m")
        assert limited.value.body["error"]["type"] == "rate_limit_error"
        assert int(limited.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("face", FACES)
async def test_limits_hold_under_concurrency(face):
    """Of forty requests at once with a key for five, exactly five reach the engine and the rest get 429 at once."""
    held = asyncio.Event()

    async def hold(call: Call) -> None:
        await held.wait()
        await answer_stream(call)

    access_control = ring_of(key("k", limits={"max_in_flight": 5}))
    async with (
        scripted_engine(hold) as engine,
        running_plane({"m": engine.url}, face=face, access_control=access_control) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"x-api-key": "k"}, timeout=30) as http,
    ):
        tasks = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(40)]
        await engine.call(4)
        while sum(task.done() for task in tasks) < 35:
            await asyncio.wait(
                [t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED
            )
        held.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*tasks)]
        assert (statuses.count(200), statuses.count(429)) == (5, 35)
        assert len(engine.calls) == 5
        await rig.settled()
        assert access_control.keyring.get("k").account.in_flight == 0
        assert {entry.line().key for entry in rig.context.access_log.entries} == {"k"}


async def test_a_full_gateway_queues_some_and_refuses_the_rest():
    """With one place and two in the queue, the fourth request gets 429 at once; the others are answered."""
    release = asyncio.Semaphore(0)

    async def hold(call: Call) -> None:
        await release.acquire()
        await answer_stream(call)

    async with (
        scripted_engine(hold) as engine,
        running_plane(
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
        await rig.settled()
        assert rig.context.admission.admitted == 0


async def test_a_request_whose_turn_does_not_come_has_waited():
    """What it spent in the queue is told of it, though it got to no instance."""
    limits = LimitsSection(max_in_flight=1, max_queued=1, queue_timeout_s=0.05)
    async with (
        scripted_engine(lambda call: call.gone()) as engine,
        running_plane({"m": engine.url}, limits=limits) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        first = asyncio.create_task(http.post(CHAT, json=BODY))
        await engine.call(0)
        assert (await http.post(CHAT, json=BODY)).status_code == 429
        (turned_away,) = rig.context.access_log.entries
        assert turned_away.line().queue_ms >= 50
        first.cancel()


async def test_a_queued_request_whose_client_leaves_gives_its_place_up():
    """Nobody waits in the queue for a client that is gone."""
    async with (
        scripted_engine(lambda call: call.gone()) as engine,
        running_plane({"m": engine.url}, limits=LimitsSection(max_in_flight=1)) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        tasks = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(2)]
        async with asyncio.timeout(5):
            while rig.context.admission.queued < 1:
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await rig.settled()
        assert (rig.context.admission.admitted, rig.context.admission.queued) == (0, 0)
        assert len(engine.calls) <= 2


async def test_usage_is_told_by_key_model_and_day():
    """Tokens that the engine counted are the key's, at once in the usage."""
    async with (
        scripted_engine() as engine,
        running_plane({"m": engine.url}, access_control=ring_of(key("a"), key("b"))) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        for secret, times in (("a", 2), ("b", 1)):
            for _ in range(times):
                await http.post(CHAT, json=BODY, headers={"x-api-key": secret})
        await rig.settled()
        used = rig.context.access_control.usage.take()
        assert {k: (u.requests, u.tokens_in, u.tokens_out) for k, u in used.items()} == {
            ("a", "m"): (2, 14, 6),
            ("b", "m"): (1, 7, 3),
        }


@pytest.mark.parametrize("face", FACES)
async def test_a_refused_client_keeps_its_connection(face):
    """A client at its limit gets its 429s over one connection, whether its body comes with the head or after it."""
    access_control = ring_of(key("k", limits={"requests_per_minute": 1}))
    access_control.admit([(b"x-api-key", b"k")], local=False)
    body = json.dumps(BODY).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: {len(body)}\r\n\r\n"
    async with (
        running_plane({}, face=face, access_control=access_control) as rig,
        asyncio.timeout(10),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        for pieces in ((head.encode() + body,), (head.encode(), body[:9], body[9:])):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)  # so that each comes in a read of its own
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 429 ")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()
