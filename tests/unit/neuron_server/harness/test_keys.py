"""The keys of engines: who gets one, and how long it lives."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cortex_common.config.neuron import HarnessEntry
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import InstanceId, LoadSpec
from neuron_server.harness.command import CommandHarness
from neuron_server.harness.keys import KEY_FIELD, KEY_FILE_FIELD, EngineAuth, EngineKeys
from neuron_server.process.supervisor import Launch

GPU = Device(index=0, uuid="GPU-0", name="g", kind=DeviceKind.CUDA, vram_total_mb=1000)
ONE = InstanceId("one")


def test_a_key_is_kept_for_the_instance_and_readable_by_its_owner_only(tmp_path: Path):
    """An engine that restarts on another port has the same key; the file has it for engines that read files."""
    keys = EngineKeys(tmp_path / "keys")
    launch = Launch(("run", "--key-file", KEY_FILE_FIELD), {"KEY": KEY_FIELD})
    first = keys.apply(launch, ONE, 8101)
    again = keys.apply(launch, ONE, 8102)
    path = tmp_path / "keys" / "one.key"

    assert first == again
    assert first.argv == ("run", "--key-file", str(path))
    assert path.read_text().strip() == first.env["KEY"] == keys.get(ONE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (keys.for_port(8101), keys.for_port(8102)) == (None, keys.get(ONE))


def test_the_next_neuron_reads_the_keys_of_adopted_engines_and_removes_the_others(tmp_path: Path):
    """The engine keeps running with its key."""
    before = EngineKeys(tmp_path)
    for name in ("one", "two"):
        before.apply(Launch((KEY_FIELD,)), InstanceId(name), 1)
    after = EngineKeys(tmp_path)
    after.restore(ONE, 8101)
    after.remove_others({"one"})

    assert after.get(ONE) == before.get(ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["one.key"]
    after.remove(ONE)
    assert after.get(ONE) is after.for_port(8101) is None
    assert not list(tmp_path.iterdir())


def test_an_engine_without_a_field_for_it_gets_no_key(tmp_path: Path):
    """Nothing is written, and requests carry nothing."""
    keys = EngineKeys(tmp_path / "keys")
    launch = Launch(("run",))
    assert keys.apply(launch, ONE, 1) is launch
    assert keys.get(ONE) is None
    assert not (tmp_path / "keys").exists()


def test_probes_carry_the_key_to_the_engines_address_only(tmp_path: Path):
    """Another host, or another port, never gets it."""
    keys = EngineKeys(tmp_path)
    keys.apply(Launch((KEY_FIELD,)), ONE, 8101)
    auth = EngineAuth(keys, "127.0.0.1")

    def sent(url: str) -> str | None:
        return next(auth.auth_flow(httpx.Request("GET", url))).headers.get("authorization")

    assert sent("http://127.0.0.1:8101/health") == f"Bearer {keys.get(ONE)}"
    assert sent("http://127.0.0.1:8102/health") is None
    assert sent("http://10.0.0.1:8101/health") is None


@pytest.mark.parametrize(
    ("settings", "takes_key"),
    [
        ({"preset": "vllm"}, True),
        ({"preset": "sglang"}, True),
        ({"preset": "comfyui", "command": ["python", "main.py"]}, False),
        ({"command": ["run", "--port", "{port}"]}, False),
        ({"command": ["run", "--key-file", "{api_key_file}"]}, True),
        ({"command": ["run"], "env": {"API_KEY": "{api_key}"}}, True),
        ({"preset": "vllm", "env": {"VLLM_API_KEY": "mine"}}, False),
    ],
)
async def test_commands_say_whether_they_take_a_key(settings: dict[str, object], takes_key: bool):
    """By a field in the command or in a variable."""
    entry = HarnessEntry.model_validate({"name": "x", "kind": "command"} | settings)
    async with httpx.AsyncClient() as http:
        harness = CommandHarness(entry, http)
        launch = harness.launch(LoadSpec(model_id="m", harness="x", vram_mb=1), [GPU], "h", 1)
    texts = (*launch.argv, *launch.env.values())
    assert harness.capabilities.takes_key is takes_key
    assert any(KEY_FIELD in t or KEY_FILE_FIELD in t for t in texts) is takes_key
