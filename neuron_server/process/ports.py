"""Selection of free ports for engines."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Collection
from functools import partial

from cortex_common.errors import Unavailable


def choose_port(
    first: int,
    last: int,
    *,
    taken: Collection[int],
    is_free: Callable[[int], bool],
    seed: str,
) -> int:
    """Return an unused port of a range.

    The search starts at an offset derived from `seed`, so that several neurons on one host rarely pick the same port,
    and a port that was just closed is rarely reused.

    Args:
        first: first port of the range.
        last: last port of the range.
        taken: ports assigned to engines, whether or not they listen yet.
        is_free: checks whether the host lets a port be bound.
        seed: usually the instance's id.

    Raises:
        Unavailable: the whole range is in use.
    """
    size = last - first + 1
    offset = zlib.crc32(seed.encode()) % size
    for step in range(size):
        port = first + (offset + step) % size
        if port not in taken and is_free(port):
            return port
    raise Unavailable(
        f"no free port between {first} and {last}",
        hints=("widen port_range of this harness in neuron.toml",),
        retry_after=5.0,
    )


def free_port(ports: tuple[int, int], host: str, taken: Collection[int], seed: str) -> int:
    """Return a port of a range that can be bound now.

    Args:
        ports: first and last port of the range.
        host: address to listen on.
        taken: see `choose_port`.
        seed: see `choose_port`.

    Raises:
        Unavailable: the whole range is in use.
    """
    is_free = partial(_can_bind, host)
    return choose_port(*ports, taken=taken, is_free=is_free, seed=seed)


def _can_bind(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True
