"""`cortex chat` on a terminal, with a gateway whose responses are scripted."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from terminal import on_terminal


class ScriptedGateway:
    """A gateway that streams scripted lines and records the requests.

    Attributes:
        requests: bodies of the requests so far.
        stopped: set when a client disconnects in mid-stream.
    """

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.stopped = threading.Event()
        self._loop = asyncio.new_event_loop()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a free port until the block ends; yield the URL."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        port = site._server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        question = self.requests[-1]["messages"][-1]["content"]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": loading on beast, about 7 s to go\n\n")
        if question == "endless":
            try:
                while True:
                    await response.write(_event("more\n\n"))
                    await asyncio.sleep(0.01)
            except OSError:
                self.stopped.set()
                raise
        await response.write(_event("# Title\n\n\x1b[2J**bo"))
        await response.write(_event("ld** end"))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(text: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def test_a_conversation_on_a_terminal(tmp_path: Path):
    """A response is rendered, progress is shown, ctrl-c stops a response and not the conversation, /save writes it."""
    gateway = ScriptedGateway()
    file = tmp_path / "talk.md"
    with gateway.serving() as url:
        # This terminal does not answer queries of the cursor's position.
        state = {"XDG_STATE_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1"}
        with on_terminal("chat", "m", "-g", url, environ=state) as (process, terminal):
            terminal.until(">\x08")
            terminal.press("hello\r")
            terminal.until("about 7 s to go")
            rendered = terminal.until(">\x08")
            assert "Title" in rendered
            assert "# Title" not in rendered
            assert "\x1b[2J" not in rendered, (
                "control sequences of the model do not reach the terminal"
            )
            terminal.press("endless\r")
            terminal.until("more")
            process.send_signal(signal.SIGINT)
            terminal.until("stopped")
            assert gateway.stopped.wait(20)
            terminal.until(">\x08")
            terminal.press("/modle x\r")
            terminal.until("did you mean /model?")
            terminal.press(f"/save {file}\r")
            terminal.until("saved to")
            terminal.press("/exit\r")
            assert process.wait(20) == 0
    assert "## user\n\nhello\n\n## assistant\n\n# Title" in file.read_text()
    assert [m["role"] for m in gateway.requests[1]["messages"]] == ["user", "assistant", "user"]
    history = tmp_path / "cortex" / "chat-history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+hello" in history.read_text()
