"""The mistral.rs engine out of its Python wheel: a blocking core, and an asyncio face that can be cancelled."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib import metadata
from pathlib import Path
from typing import Any

import mistralrs as mistralrs_wheel

from cortex_common.errors import BadRequest, CortexError, UpstreamFailed
from neuron_server.embedded_engine.gguf_header import chat_template
from neuron_server.embedded_engine.openai_wire import RAW, Job, Piece, ToolCall, Usage

mistralrs: Any = mistralrs_wheel
"""The wheel without its stubs, which contradict it: Runner takes a Which.GGUF, a stream is no union."""

_AHEAD = 256
"""Pieces that may wait for a slow reader before its generation is held."""


def passthrough_template(template: str) -> str:
    """A chat template that renders a raw prompt as it is, and everything else like `template`.

    The wheel streams chat requests only and can't cancel a text completion; so a prompt goes the way of a chat.
    """
    raw = f"messages[0]['role'] == '{RAW}'"
    return f"{{% if {raw} %}}{{{{ messages[0]['content'] }}}}{{% else %}}{template}{{% endif %}}"


def load_runner(file: Path, parallel: int) -> Any:
    """Load a GGUF file; blocks until it is in memory.

    Raises:
        ValueError: the engine can't load it; the message is the engine's.
    """
    template = chat_template(file)
    with tempfile.TemporaryDirectory(prefix="cortex-") as scratch:
        explicit = Path(scratch) / "chat.jinja"
        explicit.write_text(passthrough_template(template or ""), encoding="utf-8")
        return mistralrs.Runner(
            which=mistralrs.Which.GGUF(str(file.parent), file.name),
            max_seqs=parallel,
            # The wheel's prefix cache (0.9.5) never lets go: 0.7 MiB for each request with a 2 MB model.
            prefix_cache_n=0,
            token_source="none",  # noqa: S106 - the wheel's word for "no Hugging Face token"
            jinja_explicit=str(explicit),
        )


class MistralEngine:
    """One loaded model that generates for several requests at once.

    Args:
        runner: the loaded model.
        parallel: generations that run side by side; more of them wait their turn.
        context: tokens a request may use, where less than the model's own is wanted.
    """

    def __init__(self, runner: Any, *, parallel: int, context: int | None) -> None:
        own = runner.max_sequence_length()
        self.context = min(filter(None, (own, context)), default=None)
        self.version = metadata.version("mistralrs")
        self.parallel = parallel
        self.running = 0
        self.waiting = 0
        self._limit = None if self.context == own else self.context
        self._runner = runner
        self._starts = threading.Lock()
        self._slots = asyncio.Semaphore(parallel)
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="generate")

    def close(self) -> None:
        """Wait for the generations under way; they are cancelled with the tasks that read them."""
        self._threads.shutdown()

    async def generate(self, job: Job) -> AsyncGenerator[Piece]:
        """Run one generation; closing the iterator ends it at the engine's next token.

        Raises:
            BadRequest: the engine refuses the request.
            UpstreamFailed: the engine broke off.
        """
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        loop = asyncio.get_running_loop()
        handover = _Handover(loop)
        future = loop.run_in_executor(self._threads, self._run, job, handover)
        future.add_done_callback(self._ended)
        try:
            async with aclosing(handover.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            handover.cancel()

    def _ended(self, _: asyncio.Future[None]) -> None:
        self.running -= 1
        self._slots.release()

    def _run(self, job: Job, handover: _Handover) -> None:
        try:
            for piece in self._pieces(job):
                if not handover.put(piece):
                    return
            handover.end(None)
        except CortexError as failed:
            handover.end(failed)
        except Exception as failed:  # noqa: BLE001 - whatever the engine raises is the request's answer
            handover.end(UpstreamFailed(f"the engine broke off: {failed}"))

    def _pieces(self, job: Job) -> Iterator[Piece]:
        begun = False
        try:
            request = self._request(job)
            with self._starts:  # starting two at once raises "Already borrowed"
                chunks = self._runner.send_chat_completion_request(request)
            for chunk in chunks:
                yield _piece(chunk, raw=job.kind == "text" and not begun)
                begun = True
        except (ValueError, TypeError) as failed:
            if begun:
                raise
            raise BadRequest(str(failed)) from failed

    def _request(self, job: Job) -> Any:
        sampling, grammar = job.sampling, job.grammar or (None, None)
        choice = mistralrs.ToolChoice.Auto if job.tools else None
        return mistralrs.ChatCompletionRequest(
            messages=list(job.messages),
            model="default",
            stream=True,
            max_tokens=self._max_tokens(job),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            stop_seqs=list(job.stop) or None,
            ignore_eos=sampling.ignore_eos,
            grammar_type=grammar[0],
            grammar=grammar[1],
            tool_schemas=list(job.tools) or None,
            tool_choice=choice,
            reasoning_effort=job.reasoning_effort,
            logprobs=job.kind == "text",
        )

    def _max_tokens(self, job: Job) -> int | None:
        """The engine knows the model's own context only; a smaller one is kept here, by the prompt's text."""
        if self._limit is None:
            return job.max_tokens
        text = "".join(turn["content"] for turn in job.messages)
        room: int = self._limit - len(self._runner.tokenize_text(text, False, None))
        if room < 1:
            raise BadRequest(
                f"the prompt is longer than the context of {self._limit} tokens", param="messages"
            )
        return min(filter(None, (room, job.max_tokens)))


def _piece(chunk: Any, *, raw: bool) -> Piece:
    choice = chunk.choices[0]
    delta, usage = choice.delta, chunk.usage
    text = delta.content or ""
    if raw and choice.logprobs is not None and choice.logprobs.token.startswith(" " + text[:1]):
        text = " " + text  # a chat answer loses its first space; the token still has it
    return Piece(
        text=text,
        reasoning=delta.reasoning_content or "",
        tool_calls=tuple(
            ToolCall(call.index, call.id, call.function.name, call.function.arguments)
            for call in delta.tool_calls or ()
        ),
        finish_reason=choice.finish_reason,
        usage=None if usage is None else Usage(usage.prompt_tokens, usage.completion_tokens),
    )


class _Handover:
    """Carries pieces from a generating thread to the loop, with a bound and a way to say stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = threading.Semaphore(_AHEAD)
        self._cancelled = False
        self._queue: asyncio.Queue[Piece | CortexError | None] = asyncio.Queue()

    def put(self, piece: Piece) -> bool:
        """From the thread: hand over a piece; False once nobody wants more."""
        self._room.acquire()
        if self._cancelled:
            return False
        self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
        return True

    def end(self, error: CortexError | None) -> None:
        """From the thread: there is nothing more."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, error)

    def cancel(self) -> None:
        """From the loop: nobody wants more; wakes a held thread."""
        self._cancelled = True
        self._room.release()

    async def pieces(self) -> AsyncGenerator[Piece]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, CortexError):
                raise item
            self._room.release()
            yield item
