"""Bytes that an engine's clients have received, read from the kernel: a witness of progress that no engine can fake.

Source of the format: sock_diag(7) and linux/inet_diag.h; `tcpi_bytes_acked` of struct tcp_info in linux/tcp.h (Linux
4.2).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_ESTABLISHED = 1 << 1
_INET_DIAG_INFO = 2
_REQUEST = struct.Struct("=IHHII BBBxI HH16s16sI8s")
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE_SIZE = 72
_SOCKET_ID = slice(4, 52)
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
_TIMEOUT_S = 1.0


def acknowledged_bytes(port: int) -> Mapping[bytes, int]:
    """Return the bytes acknowledged by the peer of each established connection to a local TCP port.

    Blocks for less than a millisecond. Connections of other network namespaces are not seen.

    Returns:
        Bytes by the kernel's id of the connection; empty where the kernel does not tell.
    """
    found: dict[bytes, int] = {}
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        ) as sock:
            sock.settimeout(_TIMEOUT_S)
            for family in (socket.AF_INET, socket.AF_INET6):
                sock.send(_request(family, port))
                for message in _messages(sock):
                    if (acked := _bytes_acked(message)) is not None:
                        found[message[_SOCKET_ID]] = acked
    except OSError:  # a sandbox without netlink, or a lack of descriptors
        return {}
    return found


def has_moved(before: Mapping[bytes, int], now: Mapping[bytes, int]) -> bool:
    """Return whether a connection received bytes between two calls of `acknowledged_bytes`.

    Connections that are younger than the first call do not count, because they include the neuron's own probes.
    """
    return any(acked > before.get(connection, acked) for connection, acked in now.items())


def _request(family: int, port: int) -> bytes:
    return _REQUEST.pack(
        _REQUEST.size,
        _SOCK_DIAG_BY_FAMILY,
        _NLM_F_REQUEST_DUMP,
        1,
        0,
        family,
        socket.IPPROTO_TCP,
        1 << (_INET_DIAG_INFO - 1),
        _ESTABLISHED,
        socket.htons(port),
        0,
        bytes(16),
        bytes(16),
        0,
        b"\xff" * 8,
    )


def _messages(sock: socket.socket) -> Iterator[bytes]:
    """Yield the body of each message of a dump."""
    while True:
        data = sock.recv(1 << 17)
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind in {_NLMSG_DONE, _NLMSG_ERROR} or length < _HEADER.size:
                return
            yield data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def _bytes_acked(message: bytes) -> int | None:
    at = _MESSAGE_SIZE
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            return None
        start = at + _ATTRIBUTE.size
        if kind == _INET_DIAG_INFO and length - _ATTRIBUTE.size >= _BYTES_ACKED_AT + 8:
            return int(_BYTES_ACKED.unpack_from(message, start + _BYTES_ACKED_AT)[0])
        at += (length + 3) & ~3
    return None
