"""Settings for all tests: order of the files, Hypothesis profiles, lazy imports and garbage collection."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from rigs.lazy_import import LazyModule
from xdist.scheduler import LoadFileScheduling

# A shell starts background processes with SIGINT ignored, and commands that a test interrupts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every HTTP client loads the trusted certificate authorities, even if it never uses TLS. That takes 40 ms for the
# default ones, which no test needs.
os.environ.setdefault("SSL_CERT_FILE", str(Path(__file__).with_name("unused-ca.pem")))

# Daemons publish sockets and tokens here, for programs of the same user.
_RUNTIME_DIR = TemporaryDirectory(prefix="cortex-run-")
os.environ["XDG_RUNTIME_DIR"] = _RUNTIME_DIR.name

# After changes of pure code: `make test ARGS='tests/unit --hypothesis-profile=thorough'`.
# Without deadlines, because other processes use the CPUs too.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("thorough", max_examples=2000, **UNTIMED)
# Every run draws new examples, so that many runs cover more than one.
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
"""Files that import Anthropic's SDK. One process runs them all, because the SDK has 3200 modules (4 s of CPU time)."""

SLOW = ANTHROPIC | {
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
"""Slow files, which start first: one of them at the end would keep one process busy and the others idle."""


class _FileScheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "anthropic" if Path(file).name in ANTHROPIC else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With `--dist loadfile`, run the files that import Anthropic's SDK in one process."""
    return _FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files before all others."""
    items.sort(key=lambda item: item.path.name not in SLOW)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Import the lazy modules of a test before it starts, because seconds of blocked event loop break connections."""
    module = item.getparent(pytest.Module)
    for value in vars(module.obj).values() if module else ():
        if isinstance(value, LazyModule):
            value.load()


def pytest_collection() -> None:
    """Disable garbage collection during imports, which create no garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude modules and tests from garbage collection, because they live until the end."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
