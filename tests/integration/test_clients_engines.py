"""The official SDKs through a real gateway and a real neuron, against the embedded engine and a llama-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from clients_kit import HI, SCHEMA, claude, gpt
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
    """A model of 2 MB that says arbitrary things."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", seed=11)


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """A neuron with both engines; what one test has loaded is there for the next."""
    rig = NeuronRig(tmp_path_factory.mktemp("neuron"))
    if LLAMA is not None:
        ports = f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
        table = f'[[harnesses]]\nname = "own-build"\nkind = "llamacpp"\nbinary = "{LLAMA}"\n{ports}'
        rig.config.write_text(rig.config.read_text() + table)
    yield from running(rig)


@pytest.mark.llama
@pytest.mark.skipif(LLAMA is None, reason="no llama-server: run make engines")
async def test_a_llama_server_that_somebody_runs_is_used_as_it_stands(weights: Path) -> None:
    """Given its URL alone, the gateway lists its model, words requests for it, and counts with it."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(str(LLAMA), "-m", str(weights), "--port", str(port), "-t", "1", "-c", str(CONTEXT)),
        *("--alias", "theirs"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    upstream = UpstreamEntry(
        name="old", base_url=f"http://127.0.0.1:{port}/v1", engine="llamacpp", refresh=0.2
    )
    try:
        async with running_gateway(upstreams=(upstream,)) as served, claude(served.url) as sdk:
            async with asyncio.timeout(30):
                while not served.gateway.fleet.ready("theirs"):
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            message = await sdk.messages.create(model="theirs", max_tokens=8, messages=HI)
            counted = await sdk.messages.count_tokens(model="theirs", messages=HI)
            assert message.usage.output_tokens == 8
            cached = message.usage.cache_read_input_tokens or 0
            assert counted.input_tokens == message.usage.input_tokens + cached
            await served.wait_idle()
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest) -> str:
    """The model of each engine."""
    return str(request.param)


@pytest.fixture
async def served(neuron: NeuronRig, weights: Path) -> AsyncIterator[InProcessGateway]:
    """A gateway that knows a model of each engine, under claude- names too."""
    model_configs = [
        ModelConfig(
            id=engine,
            harness=harness,
            source=str(weights),
            context=CONTEXT,
            vram_mb=200,
            aliases=(f"claude-{engine}-*",),
            # Spinning threads of several engines would stall one another on few cores.
            args=("-t", "1") if engine == "llamacpp" else (),
        )
        for engine, harness in (("embedded", "embedded"), ("llamacpp", "own-build"))
    ]
    async with running_gateway(*model_configs, neurons={"n1": neuron.url}) as gateway:
        yield gateway
        await gateway.wait_idle()
        async with asyncio.timeout(30):
            # The engine's own count comes with its node's next reading.
            while any(i.in_flight for i in gateway.gateway.fleet.snapshot.instances()):
                await asyncio.sleep(0.01)


async def test_a_message_is_streamed_and_counted(served: InProcessGateway, model: str) -> None:
    """messages.stream loads the model where it must, and tells the engine's own counts."""
    name = f"claude-{model}-1"
    async with claude(served.url) as sdk:
        async with sdk.messages.stream(model=name, max_tokens=12, messages=HI) as stream:
            pieces = [piece async for piece in stream.text_stream]
            message = await stream.get_final_message()
        counted = await sdk.messages.count_tokens(model=name, messages=HI)
    assert "".join(pieces) == "".join(b.text for b in message.content if b.type == "text")
    assert (message.model, message.stop_reason) == (name, "max_tokens")
    assert message.usage.output_tokens == 12
    cached = message.usage.cache_read_input_tokens or 0
    assert message.usage.input_tokens + cached > 0
    assert counted.input_tokens > 0
    if model == "llamacpp":  # which counts exactly, with its template
        assert counted.input_tokens == message.usage.input_tokens + cached


async def test_a_whole_message_is_a_message(served: InProcessGateway, model: str) -> None:
    """messages.create without a stream, with system, stop sequences and parameters that engines know."""
    async with claude(served.url) as sdk:
        message = await sdk.messages.create(
            model=model,
            max_tokens=8,
            messages=HI,
            system="be brief",
            stop_sequences=["\x00"],
            extra_body={"temperature": 0, "top_k": 1},
        )
    assert message.role == "assistant"
    assert message.usage.output_tokens == 8
    assert message.content


async def test_an_answer_that_the_client_began_is_not_repeated(
    served: InProcessGateway, model: str
) -> None:
    """Clients put the text that comes behind their own: "{" and "{..." would be no JSON."""
    begun = [*HI, {"role": "assistant", "content": '{"begun": "'}]
    async with claude(served.url) as sdk:
        whole = await sdk.messages.create(model=model, max_tokens=8, messages=begun)
        async with sdk.messages.stream(model=model, max_tokens=8, messages=begun) as stream:
            streamed = await stream.get_final_text()
    assert "begun" not in whole.content[0].text + streamed
    assert whole.usage.output_tokens == 8


async def test_a_chat_is_streamed_with_usage_only_where_asked(
    served: InProcessGateway, model: str
) -> None:
    """A streamed chat ends with its reason; usage comes when it is asked for."""
    async with gpt(served.url) as sdk:
        for options, expected in (({"include_usage": True}, [9]), (openai.omit, [])):
            stream = await sdk.chat.completions.create(
                model=model, messages=HI, max_tokens=9, stream=True, stream_options=options
            )
            pieces = [piece async for piece in stream]
            assert {piece.model for piece in pieces} == {model}
            assert [p.usage.completion_tokens for p in pieces if p.usage] == expected
            reasons = [c.finish_reason for p in pieces for c in p.choices if c.finish_reason]
            assert reasons == ["length"]


async def test_a_whole_chat_is_a_chat(served: InProcessGateway, model: str) -> None:
    """chat.completions.create is whole, although one of the engines had to be asked to stream."""
    async with gpt(served.url) as sdk:
        whole = await sdk.chat.completions.create(model=model, messages=HI, max_tokens=9)
    assert whole.usage.completion_tokens == 9
    assert whole.object == "chat.completion"


async def test_a_response_is_streamed_and_whole(served: InProcessGateway, model: str) -> None:
    """responses.stream and responses.create speak through chat completions of the engine."""
    async with gpt(served.url) as sdk:
        async with sdk.responses.stream(model=model, input="hi") as stream:
            kinds = []
            async for event in stream:
                kinds.append(event.type)
                if len(kinds) > 20:
                    break
        whole = await sdk.responses.create(model=model, input="hi", max_output_tokens=16)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 16


async def test_tools_may_be_offered(served: InProcessGateway, model: str) -> None:
    """A request with tools is worded so that the engine takes it, in every dialect."""
    async with claude(served.url) as sdk:
        tool = {"name": "weather", "input_schema": SCHEMA}
        message = await sdk.messages.create(model=model, max_tokens=8, messages=HI, tools=[tool])
    async with gpt(served.url) as sdk:
        function = {"name": "weather", "parameters": SCHEMA}
        tools = [{"type": "function", "function": function}]
        chat = await sdk.chat.completions.create(
            model=model, max_tokens=8, messages=HI, tools=tools
        )
    assert message.stop_reason in {"max_tokens", "tool_use", "end_turn"}
    assert chat.choices[0].message.role == "assistant"


async def test_a_prompt_beyond_the_context_is_told_in_the_words_of_the_dialect(
    served: InProcessGateway, model: str
) -> None:
    """Anthropic's clients read the words that they compact on, OpenAI's the code."""
    long = [{"role": "user", "content": "word " * CONTEXT * 4}]
    async with claude(served.url) as sdk:
        with pytest.raises(
            anthropic.BadRequestError, match=rf"prompt is too long: \d+ tokens > {CONTEXT} maximum"
        ):
            await sdk.messages.create(model=model, max_tokens=5, messages=long)
    async with gpt(served.url) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model=model, max_tokens=5, messages=long)
    assert caught.value.code == "context_length_exceeded"
