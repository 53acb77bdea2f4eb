"""Commands that run until interrupted, on a real terminal, while their gateway stops and restarts."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from demo_fleet import environment, free_port
from engines.neuron_rig import wait_for
from rigs.forkserver import CortexProcess
from terminal import on_terminal

from cortex_cli.watch import CLEAR_SCREEN


class Gateway:
    """A gateway without nodes that can be killed and restarted.

    Args:
        directory: for its settings.
    """

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._config = directory / "cortex.toml"
        self._config.write_text(
            f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:0"\n'
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the gateway until the block ends, then kill it."""
        log = self._config.with_suffix(".log")
        log.write_text("")
        argv = ["serve", "gateway", "--log-format", "console", "--config", str(self._config)]
        process = CortexProcess(argv, log, environ=environment())
        try:
            wait_for(lambda: "gateway_listening" in log.read_text(), 30.0, log.read_text)
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    """Return a gateway that is not running."""
    return Gateway(tmp_path)


def test_ps_on_a_terminal_outlives_its_gateway(gateway: Gateway):
    """`ps --watch` reports the lost connection below the last state, and redraws after reconnecting."""
    with on_terminal("ps", "--watch", "-g", gateway.url) as (process, terminal):
        with gateway.serving():
            terminal.until("nothing is loaded")
        terminal.until("lost: ")
        again = terminal.until("lost: ")
        assert CLEAR_SCREEN in again, "the second loss takes the place of the first"
        assert "nothing is loaded" in again
        with gateway.serving():
            assert CLEAR_SCREEN in terminal.until("nothing is loaded\r\n")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130


def test_top_outlives_its_gateway(gateway: Gateway):
    """`cortex top` shows LOST and the reason until it has reconnected; keys keep working."""
    with on_terminal("top", "-g", gateway.url) as (process, terminal):
        with gateway.serving():
            terminal.until(" live ")
        assert "lost: " in terminal.until("retrying in") + terminal.until(" LOST ")
        with gateway.serving():
            terminal.until(" live ")
            terminal.press("q")
            assert process.wait(20) == 0


def test_an_interrupted_load_continues_and_the_message_says_so():
    """Ctrl-C detaches from the load, says so, and writes the document of the completed actions."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with on_terminal("models", "load", "m", "-o", "json", "-g", url) as (process, terminal):
            asked, _ = silent.accept()
            with asked:
                assert asked.recv(65_536)
                process.send_signal(signal.SIGINT)
                terminal.until("the load continues; watch it with `cortex ps --watch`")
                terminal.until('"items": []')
                assert process.wait(20) == 130
