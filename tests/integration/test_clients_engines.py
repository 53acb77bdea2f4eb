"""The official SDKs through a real gateway and neuron, with the embedded engine and a llama-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from clients_kit import MESSAGES, SCHEMA, anthropic_client, openai_client
from engines.build_llama import find
from engines.neuron_rig import NeuronRig, running
from rigs.fleet import free_port
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.lazy_import import anthropic, openai

from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import UpstreamEntry
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

LLAMA = find()
CONTEXT = 2048
ENGINES = [
    "embedded",
    pytest.param(
        "llamacpp",
        marks=[
            pytest.mark.llama,
            pytest.mark.skipif(LLAMA is None, reason="no llama-server: run make engines"),
        ],
    ),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a 2 MB model that generates arbitrary text."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", seed=11)


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """Run a neuron with both engines; models loaded by one test stay loaded for the next."""
    rig = NeuronRig(tmp_path_factory.mktemp("neuron"))
    if LLAMA is not None:
        ports = f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
        table = f'[[harnesses]]\nname = "own-build"\nkind = "llamacpp"\nbinary = "{LLAMA}"\n{ports}'
        rig.config.write_text(rig.config.read_text() + table)
    yield from running(rig)


@pytest.mark.llama
@pytest.mark.skipif(LLAMA is None, reason="no llama-server: run make engines")
async def test_external_llama_server_as_an_upstream(weights: Path) -> None:
    """Given only its URL, the gateway lists its model, adapts requests to it, and counts tokens with it."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(str(LLAMA), "-m", str(weights), "--port", str(port), "-t", "1", "-c", str(CONTEXT)),
        *("--alias", "external"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    upstream = UpstreamEntry(
        name="external", base_url=f"http://127.0.0.1:{port}/v1", engine="llamacpp", refresh=0.2
    )
    try:
        async with (
            running_gateway(upstreams=(upstream,)) as served,
            anthropic_client(served.url) as sdk,
        ):
            async with asyncio.timeout(30):
                while not served.gateway.fleet.ready("external"):
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            message = await sdk.messages.create(model="external", max_tokens=8, messages=MESSAGES)
            token_count = await sdk.messages.count_tokens(model="external", messages=MESSAGES)
            assert message.usage.output_tokens == 8
            cached = message.usage.cache_read_input_tokens or 0
            assert token_count.input_tokens == message.usage.input_tokens + cached
            await served.wait_idle()
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest) -> str:
    """Return the model of each engine."""
    return str(request.param)


@pytest.fixture
async def served(neuron: NeuronRig, weights: Path) -> AsyncIterator[InProcessGateway]:
    """Run a gateway with a model of each engine, also under claude- names."""
    model_configs = [
        ModelConfig(
            id=engine,
            harness=harness,
            source=str(weights),
            context=CONTEXT,
            vram_mb=200,
            aliases=(f"claude-{engine}-*",),
            # On few cores, busy-waiting threads of several engines would block one another.
            args=("-t", "1") if engine == "llamacpp" else (),
        )
        for engine, harness in (("embedded", "embedded"), ("llamacpp", "own-build"))
    ]
    async with running_gateway(*model_configs, neurons={"n1": neuron.url}) as gateway:
        yield gateway
        await gateway.wait_idle()
        async with asyncio.timeout(30):
            # The engine's own count comes with the node's next report.
            while any(i.in_flight for i in gateway.gateway.fleet.snapshot.instances()):
                await asyncio.sleep(0.01)


@pytest.mark.compatibility("mistral.rs, embedded", "messages")
@pytest.mark.compatibility("llama.cpp", "messages")
async def test_message_is_streamed_and_counted(served: InProcessGateway, model: str) -> None:
    """messages.stream loads the model if necessary, and reports the engine's own counts."""
    name = f"claude-{model}-1"
    async with anthropic_client(served.url) as sdk:
        async with sdk.messages.stream(model=name, max_tokens=12, messages=MESSAGES) as stream:
            pieces = [piece async for piece in stream.text_stream]
            message = await stream.get_final_message()
        token_count = await sdk.messages.count_tokens(model=name, messages=MESSAGES)
    assert "".join(pieces) == "".join(b.text for b in message.content if b.type == "text")
    assert (message.model, message.stop_reason) == (name, "max_tokens")
    assert message.usage.output_tokens == 12
    cached = message.usage.cache_read_input_tokens or 0
    assert message.usage.input_tokens + cached > 0
    assert token_count.input_tokens > 0
    if model == "llamacpp":  # it counts exactly, with its chat template
        assert token_count.input_tokens == message.usage.input_tokens + cached


async def test_unstreamed_message(served: InProcessGateway, model: str) -> None:
    """messages.create without a stream, with system, stop sequences and engine parameters."""
    async with anthropic_client(served.url) as sdk:
        message = await sdk.messages.create(
            model=model,
            max_tokens=8,
            messages=MESSAGES,
            system="be brief",
            stop_sequences=["\x00"],
            extra_body={"temperature": 0, "top_k": 1},
        )
    assert message.role == "assistant"
    assert message.usage.output_tokens == 8
    assert message.content


async def test_prefill_is_not_repeated(served: InProcessGateway, model: str) -> None:
    """Clients append the response to their prefill: "{" and "{..." would be invalid JSON."""
    messages = [*MESSAGES, {"role": "assistant", "content": '{"prefill": "'}]
    async with anthropic_client(served.url) as sdk:
        unstreamed = await sdk.messages.create(model=model, max_tokens=8, messages=messages)
        async with sdk.messages.stream(model=model, max_tokens=8, messages=messages) as stream:
            streamed = await stream.get_final_text()
    assert "prefill" not in unstreamed.content[0].text + streamed
    assert unstreamed.usage.output_tokens == 8


@pytest.mark.compatibility("mistral.rs, embedded", "chat")
@pytest.mark.compatibility("llama.cpp", "chat")
async def test_streamed_chat_has_usage_only_if_requested(
    served: InProcessGateway, model: str
) -> None:
    """A streamed chat ends with a finish reason; usage is sent if requested."""
    async with openai_client(served.url) as sdk:
        for options, expected in (({"include_usage": True}, [9]), (openai.omit, [])):
            stream = await sdk.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=9, stream=True, stream_options=options
            )
            pieces = [piece async for piece in stream]
            assert {piece.model for piece in pieces} == {model}
            assert [p.usage.completion_tokens for p in pieces if p.usage] == expected
            reasons = [c.finish_reason for p in pieces for c in p.choices if c.finish_reason]
            assert reasons == ["length"]


async def test_unstreamed_chat(served: InProcessGateway, model: str) -> None:
    """chat.completions.create returns one response, although one of the engines is asked to stream."""
    async with openai_client(served.url) as sdk:
        unstreamed = await sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=9)
    assert unstreamed.usage.completion_tokens == 9
    assert unstreamed.object == "chat.completion"


@pytest.mark.compatibility("mistral.rs, embedded", "responses")
@pytest.mark.compatibility("llama.cpp", "responses")
async def test_streamed_and_unstreamed_response(served: InProcessGateway, model: str) -> None:
    """responses.stream and responses.create use the engine's chat completions."""
    async with openai_client(served.url) as sdk:
        async with sdk.responses.stream(model=model, input="hi") as stream:
            event_types = []
            async for event in stream:
                event_types.append(event.type)
                if len(event_types) > 20:
                    break
        unstreamed = await sdk.responses.create(model=model, input="hi", max_output_tokens=16)
    assert event_types[:2] == ["response.created", "response.in_progress"]
    assert (unstreamed.status, unstreamed.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert unstreamed.usage.output_tokens == 16


@pytest.mark.compatibility("mistral.rs, embedded", "tools")
@pytest.mark.compatibility("llama.cpp", "tools")
async def test_tools_are_accepted(served: InProcessGateway, model: str) -> None:
    """Every engine accepts a request with tools, in every dialect."""
    async with anthropic_client(served.url) as sdk:
        tool = {"name": "weather", "input_schema": SCHEMA}
        message = await sdk.messages.create(
            model=model, max_tokens=8, messages=MESSAGES, tools=[tool]
        )
    async with openai_client(served.url) as sdk:
        function = {"name": "weather", "parameters": SCHEMA}
        tools = [{"type": "function", "function": function}]
        chat = await sdk.chat.completions.create(
            model=model, max_tokens=8, messages=MESSAGES, tools=tools
        )
    assert message.stop_reason in {"max_tokens", "tool_use", "end_turn"}
    assert chat.choices[0].message.role == "assistant"


@pytest.mark.compatibility("mistral.rs, embedded", "failures")
@pytest.mark.compatibility("llama.cpp", "failures")
async def test_context_overflow_is_reported_in_the_dialect(
    served: InProcessGateway, model: str
) -> None:
    """Anthropic's clients get the message that they compact on, OpenAI's the error code."""
    long = [{"role": "user", "content": "word " * CONTEXT * 4}]
    async with anthropic_client(served.url) as sdk:
        with pytest.raises(
            anthropic.BadRequestError, match=rf"prompt is too long: \d+ tokens > {CONTEXT} maximum"
        ):
            await sdk.messages.create(model=model, max_tokens=5, messages=long)
    async with openai_client(served.url) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model=model, max_tokens=5, messages=long)
    assert caught.value.code == "context_length_exceeded"
