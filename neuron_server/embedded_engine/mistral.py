"""An asyncio interface, with cancellation, to the blocking mistral.rs engine of the Python wheel."""

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
"""The wheel without its type stubs, which are wrong: Runner accepts Which.GGUF, and a stream is not a union."""

_MAX_QUEUED = 256
"""Pieces queued for a slow reader before its generation is paused."""


def passthrough_template(template: str) -> str:
    """Return a chat template that renders a raw prompt unchanged, and other messages like `template`.

    The wheel streams only chat requests and can't cancel text completions, so a prompt is sent as a chat request.
    """
    raw = f"messages[0]['role'] == '{RAW}'"
    return f"{{% if {raw} %}}{{{{ messages[0]['content'] }}}}{{% else %}}{template}{{% endif %}}"


def load_runner(file: Path, parallel: int) -> Any:
    """Load a GGUF file; block until it is in memory.

    Raises:
        ValueError: the engine can't load it; the message is from the engine.
    """
    template = chat_template(file)
    with tempfile.TemporaryDirectory(prefix="cortex-") as directory:
        explicit = Path(directory) / "chat.jinja"
        explicit.write_text(passthrough_template(template or ""), encoding="utf-8")
        return mistralrs.Runner(
            which=mistralrs.Which.GGUF(str(file.parent), file.name),
            max_seqs=parallel,
            # The wheel's prefix cache (0.9.5) leaks: 0.7 MiB per request with a 2 MB model.
            prefix_cache_n=0,
            token_source="none",  # noqa: S106 - this value means "no Hugging Face token"
            jinja_explicit=str(explicit),
        )


class MistralEngine:
    """A loaded model that generates answers for several requests at the same time.

    Args:
        runner: the loaded model.
        parallel: maximum number of concurrent generations; further requests wait.
        context: maximum tokens per request, if less than the model's.
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
        """Wait for running generations, which are cancelled together with the tasks that read them."""
        self._threads.shutdown()

    async def generate(self, job: Job) -> AsyncGenerator[Piece]:
        """Run one generation; closing the iterator cancels it at the engine's next token.

        Raises:
            BadRequest: the engine rejects the request.
            UpstreamFailed: the engine failed during the generation.
        """
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        loop = asyncio.get_running_loop()
        queue = _PieceQueue(loop)
        future = loop.run_in_executor(self._threads, self._run, job, queue)
        future.add_done_callback(self._ended)
        try:
            async with aclosing(queue.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            queue.cancel()

    def _ended(self, _: asyncio.Future[None]) -> None:
        self.running -= 1
        self._slots.release()

    def _run(self, job: Job, queue: _PieceQueue) -> None:
        try:
            for piece in self._pieces(job):
                if not queue.put(piece):
                    return
            queue.end(None)
        except CortexError as error:
            queue.end(error)
        except Exception as error:  # noqa: BLE001 - any exception of the engine becomes the request's error
            queue.end(UpstreamFailed(f"the engine failed: {error}"))

    def _pieces(self, job: Job) -> Iterator[Piece]:
        started = False
        try:
            request = self._request(job)
            with self._starts:  # concurrent starts raise "Already borrowed"
                chunks = self._runner.send_chat_completion_request(request)
            for chunk in chunks:
                yield _piece(chunk, raw=job.kind == "text" and not started)
                started = True
        except (ValueError, TypeError) as error:
            if started:
                raise
            raise BadRequest(str(error)) from error

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
        """Return the token limit; a context below the model's is enforced here, from the tokenized prompt."""
        if self._limit is None:
            return job.max_tokens
        text = "".join(turn["content"] for turn in job.messages)
        remaining: int = self._limit - len(self._runner.tokenize_text(text, False, None))
        if remaining < 1:
            raise BadRequest(
                f"the prompt is longer than the context of {self._limit} tokens", param="messages"
            )
        return min(filter(None, (remaining, job.max_tokens)))


def _piece(chunk: Any, *, raw: bool) -> Piece:
    choice = chunk.choices[0]
    delta, usage = choice.delta, chunk.usage
    text = delta.content or ""
    if raw and choice.logprobs is not None and choice.logprobs.token.startswith(" " + text[:1]):
        text = " " + text  # a chat answer lacks its first space, but the token has it
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


class _PieceQueue:
    """A bounded, cancellable queue of pieces from a generating thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._capacity = threading.Semaphore(_MAX_QUEUED)
        self._cancelled = False
        self._queue: asyncio.Queue[Piece | CortexError | None] = asyncio.Queue()

    def put(self, piece: Piece) -> bool:
        """Add a piece, from the thread; return False once the reader has cancelled."""
        self._capacity.acquire()
        if self._cancelled:
            return False
        self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
        return True

    def end(self, error: CortexError | None) -> None:
        """Mark the end or an error, from the thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, error)

    def cancel(self) -> None:
        """Cancel, from the event loop; wakes a paused thread."""
        self._cancelled = True
        self._capacity.release()

    async def pieces(self) -> AsyncGenerator[Piece]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, CortexError):
                raise item
            self._capacity.release()
            yield item
