"""The client of openresponses-py, which checks responses and the order of events strictly."""

from __future__ import annotations

from typing import Any

import pytest
from clients_kit import (
    HELLO_STREAM,
    MIXED_STREAM,
    SCHEMA,
    completion,
    in_sequence,
    json_response,
    request_body,
    stream_and_disconnect,
    stream_response,
)
from dialects_kit import chunk, sse_stream
from rigs.engine import scripted_engine
from rigs.lazy_import import openresponses
from rigs.proxy import ProxyRig, running_proxy

WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA}


def _client(rig: ProxyRig) -> Any:
    return openresponses.AsyncOpenResponses(base_url=f"{rig.url}/v1", api_key="k")


@pytest.mark.compatibility("openresponses-py (Python)", "responses")
async def test_whole_response_is_valid() -> None:
    """With all parameters that the specification has."""
    parameters = {
        "instructions": "Be brief.",
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_output_tokens": 99,
        "reasoning": {"effort": "high"},
        "metadata": {"a": "b"},
        "truncation": "auto",
    }
    async with (
        scripted_engine(json_response(completion("hello"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        _client(rig) as client,
    ):
        response = await client.responses.create({"model": "m", "input": "a"} | parameters)
    assert response.output[0].root.content[0].root.text == "hello"


@pytest.mark.compatibility("openresponses-py (Python)", "tools")
async def test_events_are_valid_and_in_order() -> None:
    """Reasoning, text and interleaved calls."""
    async with (
        scripted_engine(stream_response(MIXED_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        _client(rig) as client,
    ):
        request = {"model": "m", "input": "a", "tools": [WEATHER], "stream": True}
        stream = await client.responses.create(request)
        events = [event async for event in stream]
    types = [item.root.type for item in events[-1].response.output]
    assert types == ["reasoning", "message", "function_call", "function_call"]


@pytest.mark.compatibility("openresponses-py (Python)", "failures")
async def test_failure_is_valid() -> None:
    """It has an error before the end."""
    half = sse_stream(chunk({"content": "half"}), done=False)
    async with (
        scripted_engine(stream_and_disconnect(half)) as engine,
        running_proxy({"m": engine.url}) as rig,
        _client(rig) as client,
    ):
        stream = await client.responses.create({"model": "m", "input": "a", "stream": True})
        events = [event async for event in stream]
    assert "error" in [event.type for event in events]


@pytest.mark.compatibility("openresponses-py (Python)", "stored responses")
async def test_compaction_and_earlier_responses() -> None:
    """The items of a compaction are valid, and so is a response that continues another."""
    async with (
        scripted_engine(json_response(completion("They met."))) as engine,
        running_proxy({"m": engine.url}) as rig,
        _client(rig) as client,
    ):
        first = await client.responses.create({"model": "m", "input": "Who met?"})
        compacted = await client.responses.compact({"model": "m", "previous_response_id": first.id})
        assert [item.root.type for item in compacted.output] == ["message", "compaction"]
        await client.responses.create(
            {"model": "m", "input": "And then?", "previous_response_id": first.id}
        )
        messages = request_body(engine.calls[2])["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


@pytest.mark.compatibility("openresponses-py (Python)", "websocket")
async def test_websocket() -> None:
    """Two turns of one connection, and an error."""
    async with (
        scripted_engine(
            in_sequence(stream_response(MIXED_STREAM), stream_response(HELLO_STREAM))
        ) as engine,
        running_proxy({"m": engine.url}) as rig,
        _client(rig) as client,
        client.websocket() as connection,
    ):
        first = await connection.create({"model": "m", "input": "a", "store": False})
        [event async for event in first]
        request = {"model": "m", "input": "b", "previous_response_id": first.response_id}
        second = await connection.create(request)
        [event async for event in second]
        third = await connection.create({"model": "nope", "input": "c"})
        [event async for event in third]
    assert second.final_response.output[0].root.content[0].root.text == "hello"
    assert (third.error.status, third.error.error.code) == (404, "model_not_found")
