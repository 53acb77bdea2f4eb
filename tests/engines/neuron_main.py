"""What a neuron's process of the tests runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cortex_common import logs
from cortex_common.config.load import load
from cortex_common.config.neuron import NeuronConfig
from neuron_server.app import serve


def main(config: Path, log: Path, environ: Mapping[str, str]) -> None:
    """Serve until a signal; whatever is printed goes to the end of `log`."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environ)
    logs.set_up()
    serve(load(NeuronConfig, config, os.environ))
