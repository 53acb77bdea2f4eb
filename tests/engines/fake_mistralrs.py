"""A fake of the mistral.rs 0.9 server with its documented behavior, bugs included.

`serve -m ID -p PORT [...]` serves one model; `attach --models A,B -p PORT` serves several, all loaded, as
`from-config` does. The bugs are those of the real server:

- it listens only after the load (`--load-s`), and exits if a model can't be loaded;
- management calls always answer 200, with the result in the JSON status;
- a reload of a model that is not unloaded answers not_found and leaves it "reloading" forever, listed twice;
- with `--loses`, unload answers no_loader_config and the model is gone, as in 0.8 with several models;
- unload cuts the streams of that model without [DONE];
- usage comes in the finish chunk only, stream_options is ignored; a non-streaming request is never cancelled;
- errors are {"message": ...}, an unknown model is a 500; "default" is always accepted and always listed;
- SIGTERM ends it immediately; with several GPUs it starts workers that outlive it.
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

from fake_engine import event, respond, send

WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def parse() -> argparse.Namespace:
    """Parse the command line, which includes the real flags that the harness uses."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve")
    serve.add_argument("-m", dest="model", required=True)
    serve.add_argument("-f", dest="file")
    serve.add_argument("--quant")
    serve.add_argument("--no-ui", action="store_true", required=True)
    serve.add_argument("--cpu", action="store_true")
    serve.add_argument("--max-seqs", type=int, default=32)
    serve.add_argument("--pa-memory-mb", type=int)
    serve.add_argument("--pa-context-len", type=int)
    attach = commands.add_parser("attach")
    attach.add_argument("--models", required=True)
    attach.add_argument("--refuse", default="", help="models whose reload fails")
    attach.add_argument(
        "--loses", action="store_true", help="unload as 0.8 does with several models"
    )
    attach.add_argument("--hold", type=Path, help="reloads wait while this file exists")
    attach.add_argument("--pid-file", type=Path)
    for command in (serve, attach):
        command.add_argument("-p", dest="port", type=int, required=True)
        command.add_argument("--host", default="0.0.0.0")
        command.add_argument("--load-s", type=float, default=0.1)
    return parser.parse_args()


class Server:
    """The server: the states of its models, and its streams."""

    def __init__(
        self,
        models: list[str],
        refuse: set[str],
        load_s: float,
        *,
        loses: bool = False,
        hold: Path | None = None,
    ) -> None:
        self.loses = loses
        self.hold = hold
        self.loaded = set(models)
        self.unloaded: set[str] = set()
        self.reloading: set[str] = set()
        self.refuse = refuse
        self.load_s = load_s
        self.streams: dict[str, set[asyncio.Task]] = {model: set() for model in models}
        self.running = 0
        self.created = int(time.time())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.one(reader, writer):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, path, _ = head[0].split(" ", 2)
        headers = {
            k.strip().lower(): v.strip()
            for k, _, v in (line.partition(":") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if path in {"/health", "/metrics"}:
            text = (
                b"OK"
                if path == "/health"
                else f"mistralrs_sequences_running {self.running}\n".encode()
            )
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
            return True
        if path == "/v1/models":
            return await respond(writer, 200, {"object": "list", "data": self.listing()})
        if path == "/v1/system/info":
            return await respond(writer, 200, {"build": {"version": "0.9.2", "cuda": False}})
        if path.startswith("/v1/models/"):
            name = json.loads(body)["model_id"]
            operation = getattr(self, path.rsplit("/", 1)[1])
            return await respond(writer, 200, {"model_id": name} | await operation(name))
        if path == "/v1/chat/completions":
            return await self.chat(writer, json.loads(body))
        return await respond(writer, 404, {"message": "not found"})

    def listing(self) -> list[dict]:
        common = {"object": "model", "created": self.created, "owned_by": "local"}
        entries = [{"id": "default", "root": "default"} | common]
        for status in ("reloading", "loaded", "unloaded"):
            entries += [
                {"id": m, "root": m, "status": status} | common
                for m in sorted(getattr(self, status))
            ]
        return entries

    async def status(self, name: str) -> dict:
        for status in ("reloading", "loaded", "unloaded"):
            if name in getattr(self, status):
                return {"status": status}
        return {"status": "not_found"}

    async def unload(self, name: str) -> dict:
        if name in self.loaded:
            self.loaded.discard(name)
            for stream in self.streams[name]:
                stream.cancel()
            if self.loses:
                return {"status": "no_loader_config"}
            self.unloaded.add(name)
        return {"status": "unloaded" if name in self.unloaded else "not_found"}

    async def reload(self, name: str) -> dict:
        if name in self.reloading:
            return {"status": "reloading"}
        self.reloading.add(name)
        if name not in self.unloaded:
            return {"status": "not_found"}  # it stays in "reloading", as in the real server
        await asyncio.sleep(self.load_s)
        while self.held():
            await asyncio.sleep(0.01)
        self.reloading.discard(name)
        if name in self.refuse:
            return {"status": "internal_error", "error": "CUDA out of memory"}
        self.unloaded.discard(name)
        self.loaded.add(name)
        return {"status": "loaded"}

    def held(self) -> bool:
        """Return whether reloads have to wait."""
        return self.hold is not None and self.hold.exists()

    async def chat(self, writer: asyncio.StreamWriter, request: dict) -> bool:
        name = request.get("model", "default")
        if name == "default":
            name = min(self.loaded)
        if name not in self.loaded:
            message = f"Requested model '{name}' is not available. Available models: {', '.join(self.loaded)}."
            return await respond(writer, 500, {"message": message})
        task = asyncio.ensure_future(self.stream(writer, name, request.get("max_tokens") or 20))
        self.streams[name].add(task)
        self.running += 1
        try:
            await asyncio.wait({task})
        finally:
            self.running -= 1
            self.streams[name].discard(task)
        return False

    async def stream(self, writer: asyncio.StreamWriter, name: str, count: int) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        head = {
            "id": "7",
            "created": 1,
            "model": name,
            "system_fingerprint": "local",
            "object": "chat.completion.chunk",
        }
        usage = {"completion_tokens": count, "prompt_tokens": 5, "total_tokens": count + 5}
        for number in range(count):
            last = number == count - 1
            delta = {"content": f"word{number} ", "role": "assistant"}
            choice = {"index": 0, "delta": delta, "finish_reason": "length" if last else None}
            send(writer, event(head | {"choices": [choice], "usage": usage if last else None}))
            await writer.drain()
            await asyncio.sleep(0.01)
        send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def load(options: argparse.Namespace) -> Server:
    """Do everything that precedes listening."""
    time.sleep(options.load_s)
    if options.command == "serve":
        local = Path(options.model)
        if local.is_absolute() and not (local / (options.file or ".")).exists():
            sys.exit(f"Error: no such file {options.file}")
        models, refuse = [options.model], set()
        if os.environ.get("CUDA_VISIBLE_DEVICES", "").count(","):
            subprocess.Popen([sys.executable, "-c", WORKER])
    else:
        models, refuse = options.models.split(","), set(options.refuse.split(","))
        if options.pid_file:
            options.pid_file.write_text(str(os.getpid()))
    return Server(
        models,
        refuse,
        options.load_s,
        loses=getattr(options, "loses", False),
        hold=getattr(options, "hold", None),
    )


async def main(options: argparse.Namespace, engine: Server) -> None:
    """Serve until the process is killed."""
    server = await asyncio.start_server(engine.serve, options.host, options.port)
    print(f"Server listening on http://{options.host}:{options.port}.", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    chosen = parse()
    asyncio.run(main(chosen, load(chosen)))
