"""Which port an engine gets: of its harness's range, given to no other, and really free on this host."""

from __future__ import annotations

import socket
from collections.abc import Collection
from functools import partial

from neuron_server.process.ports import choose_port


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
