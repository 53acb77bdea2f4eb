"""The llama.cpp server of the wheel `xllamacpp` as an engine process; runs until it is terminated."""

from __future__ import annotations

import argparse
import signal
import sys


def main() -> None:
    """Serve a model."""
    parser = argparse.ArgumentParser()
    for name in ("wheel", "weights", "host", "model"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    sys.path.insert(0, options.wheel)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.weights
    params.model_alias = {options.model}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = 2048
    params.n_parallel = 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
