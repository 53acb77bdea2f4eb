"""The sockets that the daemons listen on."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from cortex_server import serving
from neuron_server import app


@pytest.mark.parametrize(
    "listen",
    [lambda: serving.listening("127.0.0.1:0", "listen"), lambda: app.listening("127.0.0.1", 0)],
    ids=["gateway", "neuron"],
)
def test_a_small_write_waits_for_no_acknowledgement(listen: Callable[[], socket.socket]):
    """Connections of either daemon send a token at once, whichever loop serves them."""
    with (
        listen() as sock,
        socket.create_connection(sock.getsockname()),
        sock.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
