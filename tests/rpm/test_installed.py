"""The unpacked packages in use: programs, settings and units."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rpm_kit import Installed

from cortex_common import __version__
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

UNITS = {"cortex.service": 20, "neuron.service": 40}
"""Units, and the maximum exposure reported by `systemd-analyze security`, in tenths."""

_CHAT = """
import sys, httpx
with httpx.stream("POST", "http://127.0.0.1:8000/v1/chat/completions", timeout=90, json={
    "model": "tiny", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}],
}) as answer:
    sys.stdout.writelines(line + "\\n" for line in answer.iter_lines())
    sys.exit(answer.status_code != 200)
"""
_DISCOVERY = """
import sys, httpx
token = open("/var/lib/cortex/neuron/token").read().strip()
answer = httpx.get("http://127.0.0.1:9090/discovery", headers={"authorization": f"Bearer {token}"})
print(answer.raise_for_status().text)
"""


@pytest.fixture(scope="module")
def host(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Return a host with all packages installed."""
    installed = Installed(root, tmp_path_factory.mktemp("var-lib"))
    try:
        yield installed
    finally:
        installed.close()


def test_command_runs(host: Installed):
    """/usr/bin/cortex only uses its private environment."""
    assert __version__ in host.run("/usr/bin/cortex", "version").stdout


def test_shell_completion(host: Installed):
    """The installed completion script works with the installed command."""
    script = "source /usr/share/bash-completion/completions/cortex; complete -p cortex"

    assert "cortex" in host.run("bash", "-c", script).stdout
    words = host.run(
        "env", "_CORTEX_COMPLETE=complete_bash", "COMP_WORDS=cortex mod", "COMP_CWORD=1", "cortex"
    )
    assert words.stdout.split() == ["models"]


def test_default_settings_are_valid(host: Installed):
    """The installed settings pass `cortex config check`, and keep engines running across restarts."""
    checked = host.run("cortex", "config", "check").stdout.splitlines()
    neuron = json.loads(host.run("cortex", "config", "show", "neuron", "--json").stdout)

    assert [line for line in checked if line.endswith(": ok")] == [
        "/etc/cortex/cortex.toml: ok",
        "/etc/cortex/models.toml: ok",
        "/etc/cortex/neuron.toml: ok",
    ]
    assert {s["key"]: s["value"] for s in neuron["items"]}["neuron.on_stop"] == "keep"


def test_manual_pages(host: Installed):
    """The pages are found, and man reports no warnings."""
    page = host.run("man", "--warnings", "cortex-models")

    assert "cortex models load" in page.stdout
    assert page.stderr == ""


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_valid_and_hardened(unit: str, host: Installed):
    """Systemd knows every key, and its security analysis reports a low exposure."""
    verified = host.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{unit}")
    warnings = [line for line in verified.stderr.splitlines() if unit in line]
    newer_keys = r"Unknown key '(RestartSteps|RestartMaxDelaySec|DelegateSubgroup)' in section"

    assert [line for line in warnings if not re.search(newer_keys, line)] == []
    host.run(
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={UNITS[unit]}",
        f"/usr/lib/systemd/system/{unit}",
    )


def test_packaged_fleet_serves_and_survives_an_upgrade(host: Installed, tmp_path: Path):
    """The packages stream a response, and a restarted neuron adopts the running engine, as after an upgrade."""
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    models = tmp_path / "models.toml"
    models.write_text(
        f'[[models]]\nid = "tiny"\nharness = "embedded"\nsource = "{weights}"\nvram_mb = 300\n'
    )
    neuron_env = {
        "CORTEX_CPU__OFFER": "true",
        "CORTEX_CPU__MEMORY_MB": "600",
        "CORTEX_HARNESSES__0__NAME": "embedded",
    }
    gateway_env = {
        "CORTEX_NEURONS__0__NAME": "here",
        "CORTEX_NEURONS__0__ENDPOINT": "http://127.0.0.1:9090",
        "CORTEX_GATEWAY__MODELS": str(models),
    }
    with host.service("cortex.service", **gateway_env) as gateway:
        with host.service("neuron.service", **neuron_env):
            gateway.wait_for("STATUS=1 of 1 nodes reachable")
            discovery = json.loads(host.python(_DISCOVERY))
            answer = host.python(_CHAT)
            before = engine_pid(host)
        with host.service("neuron.service", **neuron_env) as neuron:
            second_answer = host.python(_CHAT)
            after = engine_pid(host)
            neuron.wait_for("WATCHDOG=1")
        host.run("kill", str(after))
        gateway.wait_for("WATCHDOG=1")

    assert [device["kind"] for device in discovery["devices"]] == ["cpu"]
    assert answer.count("data: {") > 3
    assert "data: [DONE]" in answer
    assert "data: [DONE]" in second_answer
    assert before == after


def engine_pid(host: Installed) -> int:
    """Return the process id of the only engine."""
    pids = host.run(
        "pgrep", "-f", "neuron_server.embedded_engine.worker --model .*tiny.gguf"
    ).stdout
    (pid,) = pids.split()
    return int(pid)
