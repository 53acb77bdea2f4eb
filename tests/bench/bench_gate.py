"""Benchmark of the key check of a request: `python -m tests.bench.bench_gate`."""

from __future__ import annotations

import time

from cortex_common.config.access import KeyEntry
from cortex_server.auth.access_control import AccessControl, Caller
from cortex_server.auth.keys import Keyring, hash_of


def main() -> None:
    """Print the best of 20 rounds."""
    ring = Keyring()
    keys = [KeyEntry(name=f"k{n}", hash=hash_of(f"s{n}")) for n in range(1000)]
    ring.replace(keys, (), 0.0)
    access_control = AccessControl(ring)
    headers = [
        (b"host", b"x"),
        (b"content-type", b"application/json"),
        (b"content-length", b"100"),
        (b"authorization", b"Bearer s500"),
    ]
    caller = Caller.from_headers(dict(headers), "10.0.0.1")
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        for _ in range(2000):
            access_control.release(access_control.admit(headers, caller), "m", 1, 1, failed=False)
        best = min(best, (time.process_time() - started) / 2000)
    print(f"check one of 1000 keys, enter and leave: {best * 1e6:.1f} us")


if __name__ == "__main__":
    main()
