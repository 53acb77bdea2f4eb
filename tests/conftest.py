"""What holds for every test: the order of files, how long properties are tried, what the collector need not look at."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from rigs.late import Late
from xdist.scheduler import LoadFileScheduling

# A shell starts what runs in its background with SIGINT ignored, and so would be every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each client of HTTP, also one that never sees TLS, reads the authorities that it would trust: 40 ms for those of the
# web, and nobody here talks to the web.
os.environ.setdefault("SSL_CERT_FILE", str(Path(__file__).with_name("nobody.pem")))

# For who changes a core: `make test ARGS='tests/unit --hypothesis-profile=thorough'`.
# How long an example takes is no test's matter: others have the processors, too.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("thorough", max_examples=2000, **UNTIMED)
# Each run draws anew, so that many runs try what one does not.
settings.register_profile("quick", max_examples=60, **UNTIMED)
settings.load_profile("quick")

ANTHROPIC = {
    "test_clients_anthropic.py",
    "test_clients_engines.py",
    "test_clients_shapes.py",
    "test_anthropic_response.py",
    "test_dialects_sdks.py",
    "test_keys_matrix.py",
}
"""Files that import Anthropic's SDK. One process runs them all: it is 3200 modules, and 4 s of processor time."""

LONG = ANTHROPIC | {
    "test_cli_gateway.py",
    "test_proxy.py",
    "test_demo.py",
    "test_fleet.py",
    "test_hardening_edges.py",
    "test_lifecycle_controller.py",
    "test_lifecycle_gateways.py",
    "test_lifecycle_storm.py",
    "test_lifecycle_operations.py",
    "test_neuron_api.py",
    "test_neuron_mistralrs.py",
    "test_neuron_mistralrs_real.py",
    "test_neuron_supervisor.py",
    "test_reload_gateway.py",
    "test_top_keys.py",
    "test_top_pictures.py",
}
"""Files that begin first: one of them at the end would keep one process busy and the others idle."""


class _ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "anthropic" if Path(file).name in ANTHROPIC else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With `--dist loadfile` some files go together."""
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files before all others."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Import what the test's module imports late: within its event loop, seconds of silence would break connections."""
    module = item.getparent(pytest.Module)
    for value in vars(module.obj).values() if module else ():
        if isinstance(value, Late):
            value.load()


def pytest_collection() -> None:
    """Nothing that an import makes is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end, so they need not be looked at again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
