"""Listening sockets of the daemons."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest

from cortex_http.sockets import is_peer_unresponsive
from cortex_server import gateway
from neuron_server import main

DAEMONS = {
    "gateway": lambda: gateway.listening("127.0.0.1:0", "listen"),
    "neuron": lambda: main.listening("127.0.0.1", 0),
}


@pytest.mark.parametrize("listen", DAEMONS.values(), ids=DAEMONS)
def test_small_writes_are_sent_immediately(listen: Callable[[], socket.socket]):
    """Connections of both daemons have TCP_NODELAY, with any event loop."""
    with (
        listen() as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("listen", DAEMONS.values(), ids=DAEMONS)
def test_connections_have_keepalive(listen: Callable[[], socket.socket]):
    """The kernel probes the client after 30 seconds of silence, on connections of both daemons."""
    with (
        listen() as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_client_that_does_not_read_is_responsive():
    """Its kernel acknowledges probes even if its buffers are full; nor is one unresponsive that was just sent data."""
    with (
        gateway.listening("127.0.0.1:0", "listen") as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        connection.send(b"x")
        assert not is_peer_unresponsive(connection)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while connection.send(b"x" * 65536):
                pass
        assert not is_peer_unresponsive(connection)
        connection.close()
        assert not is_peer_unresponsive(connection)
    first, second = socket.socketpair()
    with first, second:
        assert not is_peer_unresponsive(first)
