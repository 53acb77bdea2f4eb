"""Bytes delivered to an engine's clients, as the kernel counts them."""

from __future__ import annotations

import socket

from neuron_server.process.tcp_progress import acknowledged_bytes, has_moved


def test_delivered_bytes_are_seen():
    """Bytes that a client received move the count of its connection, and of no other port's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            connection, _ = server.accept()
            with connection:
                before = acknowledged_bytes(port)
                assert len(before) == 1
                assert not has_moved(before, acknowledged_bytes(port))
                connection.sendall(b"x" * 100)
                client.recv(100)
                while not has_moved(before, acknowledged_bytes(port)):
                    pass
        assert acknowledged_bytes(other.getsockname()[1]) == {}


def test_a_new_connection_is_no_progress():
    """A connection that was opened in between, such as a probe, does not count."""
    assert not has_moved({}, {b"probe": 200})
    assert not has_moved({b"a": 5}, {b"a": 5, b"probe": 200})
