"""Which port an engine gets."""

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
    """A port of the range that nobody uses.

    The search begins at a place given by `seed`, so that several neurons on one host, or a port that its last
    owner has just left, seldom meet.

    Args:
        first: of the range.
        last: of the range, included.
        taken: ports that were given away, whether or not their engine listens yet.
        is_free: asks the host.
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
    """See `core.ports.choose_port`; `ports` are the first and the last, `host` the address to listen on."""
    free = partial(_is_free, host)
    return choose_port(*ports, taken=taken, is_free=free, seed=seed)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True
