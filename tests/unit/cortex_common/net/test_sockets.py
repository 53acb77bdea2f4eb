"""The sockets that the daemons listen on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest

from cortex_common.net.sockets import vanished
from cortex_http import server
from neuron_server import main

DAEMONS = {
    "gateway": lambda: server.listening("127.0.0.1:0", "listen"),
    "neuron": lambda: main.listening("127.0.0.1", 0),
}


@pytest.mark.parametrize("listen", DAEMONS.values(), ids=DAEMONS)
def test_a_small_write_waits_for_no_acknowledgement(listen: Callable[[], socket.socket]):
    """Connections of either daemon send a token at once, whichever loop serves them."""
    with (
        listen() as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("listen", DAEMONS.values(), ids=DAEMONS)
def test_a_client_that_vanishes_is_noticed(listen: Callable[[], socket.socket]):
    """The kernel asks after half a minute of silence, on connections of whoever listens."""
    with (
        listen() as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_a_client_that_only_reads_nothing_has_not_vanished():
    """Its kernel acknowledges what it is asked, however full its buffers are; nor has one that was just written to."""
    with (
        server.listening("127.0.0.1:0", "listen") as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        connection.send(b"x")
        assert not vanished(connection)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while connection.send(b"x" * 65536):
                pass
        assert not vanished(connection)
        connection.close()
        assert not vanished(connection)
    one, other = socket.socketpair()
    with one, other:
        assert not vanished(one)
