"""The Responses API of a running proxy: stored responses, compaction, and what official clients do with it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from clients_kit import (
    HELLO_STREAM,
    completion,
    in_sequence,
    json_response,
    openai_client,
    request_body,
    stream_response,
)
from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from published_schemas import open_responses, violations
from rigs.engine import scripted_engine
from rigs.lazy_import import openai
from rigs.proxy import running_proxy

from cortex_common.config.access import KeyEntry, LimitsSection
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of

_PATCH = "*** Begin Patch\n*** End Patch"
_CUSTOM_CALL = sse_stream(
    chunk(call_delta(0, json.dumps({"input": _PATCH})[:9], call_id="c1", name="apply_patch")),
    chunk(call_delta(0, json.dumps({"input": _PATCH})[9:])),
    chunk(finish="tool_calls"),
    usage_chunk(),
)


def _contents(body: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in body["messages"]]


def _two_keys() -> AccessControl:
    keyring = Keyring()
    keyring.replace(
        [KeyEntry(name=name, hash=hash_of(name), scopes=("infer",)) for name in "ab"], (), 0.0
    )
    return AccessControl(keyring)


@pytest.mark.compatibility("openai (Python)", "stored responses")
async def test_previous_response_is_the_beginning_of_the_conversation() -> None:
    """A streamed turn and an unstreamed one; the response says what it follows."""
    async with (
        scripted_engine(
            in_sequence(json_response(completion("one")), stream_response(HELLO_STREAM))
        ) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        first = await sdk.responses.create(model="m", input="a", instructions="Be brief.")
        async with sdk.responses.stream(
            model="m", input="b", previous_response_id=first.id
        ) as stream:
            second = await stream.get_final_response()
        third = await sdk.responses.create(model="m", input="c", previous_response_id=second.id)
    assert (first.store, second.previous_response_id) == (True, first.id)
    assert third.previous_response_id == second.id
    assert _contents(request_body(engine.calls[2])) == [
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant", "hello"),
        ("user", "c"),
    ]


async def test_items_can_be_referenced() -> None:
    """The AI SDK sends the items of earlier steps as references."""
    call = sse_stream(
        chunk(call_delta(0, '{"city":"Rome"}', call_id="c1", name="weather")),
        chunk(finish="tool_calls"),
        usage_chunk(),
    )
    async with (
        scripted_engine(
            in_sequence(stream_response(call), stream_response(HELLO_STREAM))
        ) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        async with sdk.responses.stream(model="m", input="a") as stream:
            first = await stream.get_final_response()
        references = [{"type": "item_reference", "id": item.id} for item in first.output]
        output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
        question = {"role": "user", "content": "a"}
        async with sdk.responses.stream(model="m", input=[question, *references, output]) as stream:
            await stream.until_done()
        messages = request_body(engine.calls[1])["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city":"Rome"}',
    }


async def test_stored_response_can_be_read_and_deleted() -> None:
    """With its input items; what is deleted can't be continued."""
    async with (
        scripted_engine(json_response(completion("one"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        created = await sdk.responses.create(model="m", input="a")
        assert await sdk.responses.retrieve(created.id) == created
        items = await sdk.responses.input_items.list(created.id)
        assert [item.content for item in items.data] == ["a"]
        await sdk.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(created.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.delete(created.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.responses.create(model="m", input="b", previous_response_id=created.id)
    assert (caught.value.code, caught.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )


async def test_other_key_does_not_see_a_response() -> None:
    """Neither the response nor its items."""
    async with (
        scripted_engine(json_response(completion("secret"))) as engine,
        running_proxy({"m": engine.url}, access_control=_two_keys()) as rig,
        openai_client(rig.url, "a") as mine,
        openai_client(rig.url, "b") as other,
    ):
        created = await mine.responses.create(model="m", input="a")
        reference = [{"type": "item_reference", "id": created.output[0].id}]
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(created.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.create(model="m", input=reference)
        with pytest.raises(openai.BadRequestError):
            await other.responses.create(model="m", input="b", previous_response_id=created.id)
        assert (await mine.responses.retrieve(created.id)).output_text == "secret"
        assert len(engine.calls) == 1


async def test_responses_are_stored_only_if_asked_and_allowed() -> None:
    """`store` of the response says whether it is."""
    async with (
        scripted_engine(json_response(completion("one"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        running_proxy({"m": engine.url}, limits=LimitsSection(stored_responses_mb=0)) as without,
        openai_client(rig.url) as sdk,
        openai_client(without.url) as without_sdk,
    ):
        for client, store in ((sdk, False), (without_sdk, True)):
            created = await client.responses.create(model="m", input="a", store=store)
            assert created.store is False
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(created.id)


async def test_compacted_conversation_goes_on() -> None:
    """The model writes a summary without tools, and the next request begins with it."""
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    async with (
        scripted_engine(
            in_sequence(json_response(completion("They met.")), json_response(completion("yes")))
        ) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=f"{rig.url}/v1") as http,
        openai_client(rig.url) as sdk,
    ):
        body = {
            "model": "m",
            "input": [{"role": "user", "content": "Who met?"}],
            "tools": [tool],
        }
        compacted = (await http.post("/responses/compact", json=body)).json()
        await sdk.responses.create(
            model="m", input=[*compacted["output"], {"role": "user", "content": "Go on."}]
        )
        summarized, continued = [request_body(call) for call in engine.calls]
    assert violations(open_responses("CompactResource"), compacted) == []
    assert compacted["usage"]["total_tokens"] == 16
    assert [item["type"] for item in compacted["output"]] == ["message", "compaction"]
    assert summarized["tool_choice"] == "none"
    assert "Summarize" in summarized["messages"][-1]["content"]
    (message,) = continued["messages"]
    assert "They met." in message["content"]
    assert message["content"].startswith("Who met?")
    assert message["content"].endswith("Go on.")


async def test_input_tokens_are_estimated_without_an_engine() -> None:
    """No model is loaded for it."""
    async with running_proxy({"m": "http://127.0.0.1:1"}) as rig, openai_client(rig.url) as sdk:
        short = await sdk.responses.input_tokens.count(model="m", input="hi")
        long = await sdk.responses.input_tokens.count(model="m", input="hello " * 100)
    assert (short.object, 0 < short.input_tokens < long.input_tokens) == (
        "response.input_tokens",
        True,
    )


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/responses/input_tokens", "input"),
        ("/v1/responses/compact", "input"),
        ("/v1/messages/count_tokens", "messages"),
    ],
)
async def test_invalid_request_for_a_count_is_refused(path: str, field: str) -> None:
    """With a message that names the part, whether or not an engine is asked."""
    parts = [{"type": "hologram", "text": "x"}]
    body = {"model": "m", field: [{"role": "user", "content": parts}]}
    async with (
        running_proxy({"m": "http://127.0.0.1:1"}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        refused = await http.post(path, json=body)
    assert refused.status_code == 400
    assert f"{field}.0.content.0" in refused.json()["error"]["message"]


async def test_custom_tools_work_both_ways() -> None:
    """The model's input arrives as text, and goes back to it as arguments."""
    tool = {"type": "custom", "name": "apply_patch", "description": "Patch files."}
    async with (
        scripted_engine(
            in_sequence(stream_response(_CUSTOM_CALL), stream_response(HELLO_STREAM))
        ) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        stream = await sdk.responses.create(model="m", input="a", tools=[tool], stream=True)
        events = [event async for event in stream]
        (call,) = events[-1].response.output
        output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
        again = await sdk.responses.create(
            model="m",
            input=[output],
            previous_response_id=events[-1].response.id,
            tools=[tool],
            stream=True,
        )
        [event async for event in again]
        messages = request_body(engine.calls[1])["messages"]
    assert (call.type, call.name, call.input) == ("custom_tool_call", "apply_patch", _PATCH)
    assert "response.custom_tool_call_input.done" in [event.type for event in events]
    arguments = messages[1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"input": _PATCH}
    assert (messages[2]["role"], messages[2]["content"]) == ("tool", "done")
