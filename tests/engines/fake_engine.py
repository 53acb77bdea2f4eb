"""A scriptable engine process, with faults that real engines do not produce on demand.

Serves /health, /metrics, /v1/models, /v1/chat/completions and /v1/completions like a llama-server whose model answers
"word0 word1 word2 ...". It uses only the standard library, so it starts in a tenth of a second. Options select faults;
those named `--...-on FILE` wait for a file to appear, so that a test decides when something happens. GET /fake/stats
returns {"started", "finished", "cancelled", "in_flight"}.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.01
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True)
    add("--model", default="fake", help="id in /v1/models and in answers")
    add("--context", type=int, default=4096, help="context announced in /v1/models")
    runner = parser.add_argument_group("runner")
    add = runner.add_argument
    add(
        "--listen-after",
        type=float,
        default=0.0,
        metavar="S",
        help="refuse connections for S seconds",
    )
    add("--listen-on", type=Path, metavar="FILE", help="refuse connections until FILE exists")
    add("--ready-on", type=Path, metavar="FILE", help="answer 503 until FILE exists")
    add(
        "--loading",
        type=float,
        default=0.0,
        metavar="S",
        help='answer 503 "Loading model" for S seconds',
    )
    add(
        "--say", action="append", default=[], metavar="TEXT", help="print TEXT at start; repeatable"
    )
    add("--exit-at-load", type=int, metavar="CODE", help="exit with CODE instead of listening")
    add("--oom-at-load", action="store_true", help="print CUDA's out-of-memory line and exit 1")
    add("--crash-at-load", action="store_true", help="abort (SIGABRT) instead of listening")
    add("--hang-at-load", action="store_true", help="never listen")
    add("--wrong-port", action="store_true", help="keep running without listening")
    add("--ignore-term", action="store_true", help="ignore SIGTERM")
    add(
        "--slow-term",
        type=float,
        default=0.0,
        metavar="S",
        help="take S seconds to end after SIGTERM",
    )
    add("--child", action="store_true", help="start a child that ignores SIGTERM")
    add(
        "--daemon-child",
        action="store_true",
        help="start such a child in a session of its own, reparented to init",
    )
    add(
        "--hidden-child",
        action="store_true",
        help="start such a daemon with an empty environment",
    )
    add(
        "--bare-child",
        action="store_true",
        help="start a child without an environment, as vLLM's workers appear",
    )
    add(
        "--crash-on",
        type=Path,
        metavar="FILE",
        help="once FILE exists: remove it and crash (exit 1)",
    )
    add("--gpu-mb", type=int, metavar="N", help="use N MiB on the GPU of `process_gpus`")
    add("--gpu-share", type=float, metavar="S", help="use that share of the GPU, and --gpu-mb")
    add("--memory-mb", type=int, default=0, metavar="N", help="hold N MiB of resident memory")
    add("--chatty", type=int, default=0, metavar="N", help="print N lines of 100 bytes at start")
    answer = parser.add_argument_group("answers")
    add = answer.add_argument
    add(
        "--tokens",
        type=int,
        default=8,
        metavar="N",
        help="words in an answer unless max_tokens is less",
    )
    add("--finish-on", type=Path, metavar="FILE", help="continue answers until FILE exists")
    add("--interval", type=float, default=0.0, metavar="S", help="seconds between words")
    add("--first-byte", type=float, default=0.0, metavar="S", help="seconds before the first byte")
    add("--status", type=int, metavar="CODE", help="answer every generation with this HTTP status")
    add("--die-at", type=int, metavar="N", help="SIGKILL the process before word N")
    add("--close-at", type=int, metavar="N", help="close the connection before word N")
    add("--hang-at", type=int, metavar="N", help="send nothing more from word N on")
    add("--garbage-at", type=int, metavar="N", help="send invalid JSON as word N")
    add(
        "--half-utf8-at",
        type=int,
        metavar="N",
        help="split the bytes of a character over two writes at word N",
    )
    add(
        "--error-at",
        type=int,
        metavar="N",
        help="send an error event instead of word N, then end without [DONE]",
    )
    add("--no-done", action="store_true", help="end streams without [DONE]")
    add("--no-usage", action="store_true", help="never send usage")
    add(
        "--usage-in-finish",
        action="store_true",
        help="send usage in the finish chunk, as mistral.rs does",
    )
    return parser.parse_args()


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ready_at = time.monotonic() + options.loading
        self.ready_on: Path | None = options.ready_on
        self.stats = {"started": 0, "finished": 0, "cancelled": 0, "in_flight": 0}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.one(reader, writer):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {
            k.strip().lower(): v.strip()
            for k, _, v in (line.partition(":") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = path.split("?")[0]
        if path == "/fake/stats":
            return await respond(writer, 200, self.stats)
        if self.loading():
            error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
            return await respond(writer, 503, {"error": error})
        if path in {"/health", "/metrics"}:
            metrics = f"fake_running {self.stats['in_flight']}\n"
            return await respond(writer, 200, metrics if path == "/metrics" else {"status": "ok"})
        if path == "/v1/models":
            entry = {
                "id": self.options.model,
                "object": "model",
                "created": 0,
                "max_model_len": self.options.context,
            }
            return await respond(writer, 200, {"object": "list", "data": [entry]})
        if method == "POST" and path in {"/v1/chat/completions", "/v1/completions"}:
            return await self.generate(reader, writer, json.loads(body), chat="chat" in path)
        return await respond(writer, 404, {"error": {"message": f"no {path}", "code": 404}})

    def loading(self) -> bool:
        """Return whether requests are still answered with 503."""
        waiting = self.ready_on is not None and not self.ready_on.exists()
        return waiting or time.monotonic() < self.ready_at

    async def generate(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: dict,
        *,
        chat: bool,
    ) -> bool:
        if self.options.status is not None:
            error = {"message": f"scripted {self.options.status}", "code": self.options.status}
            return await respond(writer, self.options.status, {"error": error})
        self.stats["started"] += 1
        self.stats["in_flight"] += 1
        answering = asyncio.ensure_future(self.answer(writer, request, chat))
        disconnected = asyncio.ensure_future(
            reader.read(1)
        )  # a pipelined byte counts as a disconnect too
        try:
            await asyncio.wait({answering, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            finished = answering.done() and answering.exception() is None
            self.stats["finished" if finished else "cancelled"] += 1
        finally:
            self.stats["in_flight"] -= 1
            answering.cancel()
            disconnected.cancel()
            await asyncio.gather(answering, disconnected, return_exceptions=True)
        return False

    async def answer(self, writer: asyncio.StreamWriter, request: dict, chat: bool) -> None:
        options = self.options
        count = min(
            options.tokens,
            request.get("max_tokens") or request.get("max_completion_tokens") or 10**9,
        )
        await asyncio.sleep(options.first_byte)
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        finish = "length" if count < options.tokens else "stop"
        if not request.get("stream"):
            await self.compute(count)
            text = "".join(f"word{n} " for n in range(count))
            shape = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, **shape, "finish_reason": finish}
            await respond(
                writer, 200, self.frame(chat, [choice], "") | {"usage": usage}, close=True
            )
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for number in range(count):
            if not await self.word(writer, number, chat):
                return
        while options.finish_on is not None and not exists(options.finish_on):
            if not await self.word(writer, count, chat):
                return
            await asyncio.sleep(POLL_S)
        last = self.frame(chat, [choice_of(chat, "", finish)])
        if options.usage_in_finish:
            last["usage"] = usage
        send(writer, event(last))
        if (request.get("stream_options") or {}).get("include_usage") and not (
            options.no_usage or options.usage_in_finish
        ):
            send(writer, event(self.frame(chat, []) | {"usage": usage}))
        if not options.no_done:
            send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def compute(self, count: int) -> None:
        """Take the time that an answer takes."""
        for number in range(count):
            await asyncio.sleep(self.options.interval)
            self.kill_at(number)
        if self.options.finish_on is not None:
            await appears(self.options.finish_on)

    async def word(self, writer: asyncio.StreamWriter, number: int, chat: bool) -> bool:
        options = self.options
        self.kill_at(number)
        if number == options.close_at:
            writer.transport.abort()
            return False
        if number == options.hang_at:
            await asyncio.Event().wait()
        if number == options.error_at:
            send(
                writer,
                event(
                    {"error": {"message": "scripted error", "type": "server_error", "code": 500}}
                ),
            )
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return False
        if number == options.garbage_at:
            send(writer, b"data: {\xff\xfe not json\n\n")
        elif number == options.half_utf8_at:
            data = event(self.frame(chat, [choice_of(chat, "grüße ", None)]))
            middle = data.index("ü".encode()) + 1
            send(writer, data[:middle])
            await writer.drain()
            await asyncio.sleep(0.05)
            send(writer, data[middle:])
        else:
            send(writer, event(self.frame(chat, [choice_of(chat, f"word{number} ", None)])))
        await writer.drain()
        await asyncio.sleep(options.interval)
        return True

    def kill_at(self, number: int) -> None:
        if number == self.options.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def frame(self, chat: bool, choices: list, suffix: str = ".chunk") -> dict:
        kind = f"chat.completion{suffix}" if chat else "text_completion"
        return {
            "id": "fake-1",
            "object": kind,
            "created": 1,
            "model": self.options.model,
            "choices": choices,
        }


def choice_of(chat: bool, text: str, finish: str | None) -> dict:
    """Return one choice of a chunk."""
    if chat:
        return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"index": 0, "text": text, "finish_reason": finish}


def event(data: dict) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write one HTTP chunk."""
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def respond(
    writer: asyncio.StreamWriter, status: int, body: dict | str, *, close: bool = False
) -> bool:
    """Answer with JSON or text; return whether the connection stays open."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    connection = b"close" if close else b"keep-alive"
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: %b\r\n\r\n"
        % (status, len(data), connection)
        + data
    )
    await writer.drain()
    return not close


def start_children(options: argparse.Namespace) -> None:
    """Start the child processes that the options ask for."""
    if options.child:
        subprocess.Popen([sys.executable, "-c", CHILD])
    if options.bare_child:
        subprocess.Popen([sys.executable, "-c", CHILD], env={})
    if options.daemon_child or options.hidden_child:
        env = {} if options.hidden_child else dict(os.environ)
        script = f"import subprocess; subprocess.Popen([{sys.executable!r}, '-c', {CHILD!r}], "
        script += f"start_new_session=True, env={env!r})"
        subprocess.run([sys.executable, "-c", script], check=True)


def load(options: argparse.Namespace) -> list[bytearray]:
    """Do everything that precedes listening; return the allocated memory."""
    for text in options.say:
        print(text, file=sys.stderr, flush=True)
    for number in range(options.chatty):
        print(f"{number:<99}", file=sys.stderr, flush=number % 1000 == 999)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_children(options)
    if options.exit_at_load is not None:
        sys.exit(options.exit_at_load)
    if options.oom_at_load:
        print(
            "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
            file=sys.stderr,
        )
        sys.exit(1)
    if options.crash_at_load:
        os.abort()
    if options.hang_at_load:
        time.sleep(3600)
    time.sleep(options.listen_after)
    while options.listen_on is not None and not options.listen_on.exists():
        time.sleep(POLL_S)
    return [bytearray(b"x" * 1024 * 1024) for _ in range(options.memory_mb)]


async def appears(file: Path) -> None:
    """Wait until a file exists."""
    while not exists(file):
        await asyncio.sleep(POLL_S)


def exists(file: Path | None) -> bool:
    """Return whether a file is given and exists."""
    return file is not None and file.exists()


async def crash(file: Path) -> None:
    """Crash once a file exists; the file is removed, so that the restarted engine keeps running."""
    await appears(file)
    remove(file)
    os._exit(1)


def remove(file: Path) -> None:
    """Remove a file."""
    file.unlink()


async def main(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    engine = Engine(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if not options.ignore_term:
        loop.add_signal_handler(
            signal.SIGTERM, lambda: loop.call_later(options.slow_term, stop.set)
        )
    tasks = set()
    if options.crash_on is not None:
        tasks.add(asyncio.create_task(crash(options.crash_on)))
    if options.wrong_port:
        await stop.wait()
        return
    server = await asyncio.start_server(engine.serve, options.host, options.port)
    print(f"listening on http://{options.host}:{options.port}", file=sys.stderr, flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    chosen = parse()
    memory = load(chosen)
    asyncio.run(main(chosen))
