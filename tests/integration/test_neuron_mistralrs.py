"""mistral.rs as a process and attached, with a fake server that has its documented behavior."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.attached_rig import FAKE_MISTRALRS, Attached, script
from engines.neuron_rig import NeuronRig, load, running, until

from cortex_common.errors import Conflict, LoadFailed, NotFound, NotSupported, Unavailable
from cortex_common.schema.instances import InstanceState, LoadSpec, RestartRequest, UnloadRequest
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf


@pytest.fixture
def process_rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """Provide a neuron whose mistralrs program is the fake."""
    program = script(
        tmp_path / "mistralrs", f'exec {shlex.join([sys.executable, str(FAKE_MISTRALRS)])} "$@"'
    )
    rig = NeuronRig(tmp_path / "neuron")
    section = f'[[harnesses]]\nname = "mistralrs"\nbinary = "{program}"\n'
    rig.config.write_text(
        rig.config.read_text() + section + f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    )
    yield from running(rig)


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Attached]:
    """Provide an attached engine with a systemd unit."""
    attached = Attached(tmp_path)
    try:
        attached.start_engine()
        attached.rig.start()
        yield attached
    finally:
        attached.close()


def shared(model: str, **more: object) -> LoadSpec:
    """Return a spec for the attached engine."""
    return LoadSpec.model_validate({"model_id": model, "harness": "shared"} | more)


async def statuses(url: str) -> dict[str, str]:
    """Return the status of each model as the engine reports it."""
    async with httpx.AsyncClient(base_url=url) as http:
        return {
            name: (await http.post("/v1/models/status", json={"model_id": name})).json()["status"]
            for name in ("org/a", "org/b")
        }


async def test_mistralrs_serves_one_model_per_process(process_rig: NeuronRig, tmp_path: Path):
    """A local file is served as "default", a repository under its own name, each by its own process."""
    weights = write_tiny_gguf(tmp_path / "weights" / "tiny.gguf")
    async with process_rig.client() as client:
        local = LoadSpec(model_id="my/name", harness="mistralrs", source=str(weights), vram_mb=300)
        ready = await load(client, local)
        assert ready.served_as == "default"
        assert ready.engine_version == "mistral.rs 0.9.2"
        remote = await load(client, LoadSpec(model_id="org/repo", harness="mistralrs", vram_mb=300))
        assert remote.served_as is None
        assert remote.url != ready.url
        async with httpx.AsyncClient() as http:
            for model, name in ((ready, "default"), (remote, "org/repo")):
                body = {"model": name, "messages": [], "max_tokens": 3}
                answer = await http.post(f"{model.url}/v1/chat/completions", json=body)
                assert "data: [DONE]" in answer.text
        await client.unload(UnloadRequest(model_id="my/name", drain_seconds=1))
        await client.unload(UnloadRequest(model_id="org/repo"))
    assert process_rig.engines() == []


async def test_an_attached_engines_models_are_instances(attached: Attached):
    """Models loaded in an attached engine are instances; "default" and duplicates are not."""
    async with attached.rig.client() as client:
        models = await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        assert sorted(m.id for m in models) == ["org/a", "org/b"]
        assert {m.url for m in models} == {attached.url}
        assert {m.harness for m in models} == {"shared"}


async def test_attached_models_are_unloaded_and_reloaded(attached: Attached):
    """Unloads and loads use the engine's own API, and a loaded model is never reloaded."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/a"))
        assert await statuses(attached.url) == {"org/a": "unloaded", "org/b": "loaded"}
        assert [m.id for m in await client.models()] == ["org/b"]
        await load(client, shared("mine", source="org/a"))
        assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}
        mine = next(m for m in await client.models() if m.id == "mine")
        assert mine.served_as == "org/a"
        await asyncio.gather(*(client.load(shared("org/b")) for _ in range(5)))
        assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}


async def test_stopping_the_neuron_does_not_affect_an_attached_engine(attached: Attached):
    """Its models stay loaded."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
    assert await asyncio.to_thread(attached.rig.stop) == 0
    assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}


async def test_a_model_unloaded_by_others_is_no_longer_ready(attached: Attached):
    """The neuron detects changes made by other clients of the engine."""
    async with attached.rig.client() as client, httpx.AsyncClient(base_url=attached.url) as http:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await http.post("/v1/models/unload", json={"model_id": "org/a"})
        models = await until(client, lambda ms: any(m.status is InstanceState.FAILED for m in ms))
        failed = next(m for m in models if m.status is InstanceState.FAILED)
        assert failed.id == "org/a"
        assert failed.error == "another client of the engine unloaded it"
        with pytest.raises(Unavailable):
            await client.endpoint("org/a")


async def test_a_model_stuck_in_reloading_is_recovered_by_a_restart(attached: Attached):
    """The engine's bug is detected, and its unit is restarted."""
    async with attached.rig.client() as client, httpx.AsyncClient(base_url=attached.url) as http:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await http.post("/v1/models/reload", json={"model_id": "org/a"})
        assert (await statuses(attached.url))["org/a"] == "reloading"
        await until(client, lambda ms: any(m.status is InstanceState.FAILED for m in ms))
        await load(client, shared("org/a"))
        assert "--no-ask-password restart mistralrs.service" in attached.calls.read_text()
        assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}


async def test_a_model_lost_by_its_engine_is_recovered_by_a_restart(tmp_path: Path):
    """0.8 can't reload a model it unloaded while others were loaded; it is restarted once no other model is loaded."""
    attached = Attached(tmp_path, loses=True)
    try:
        attached.start_engine()
        attached.rig.start()
        async with attached.rig.client() as client:
            await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
            await client.unload(UnloadRequest(model_id="org/a"))
            await client.load(shared("org/a"))
            models = await until(client, lambda ms: any(m.error for m in ms))
            assert "only a restart recovers it" in next(m.error or "" for m in models if m.error)
            await client.unload(UnloadRequest(model_id="org/b"))
            await load(client, shared("org/a"))
            assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}
    finally:
        attached.close()


async def test_concurrent_restarts_of_an_attached_engine_are_one(attached: Attached):
    """All its models are loaded again, its cycles are reset, and another request by cycles changes nothing."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/a"))
        attached.hold.touch()
        await client.load(shared("org/a"))
        with pytest.raises(Conflict, match="is loading"):
            await client.restart("shared", RestartRequest())
        attached.hold.unlink()
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/b"))
        assert [(e.harness, e.cycles) for e in await client.attached()] == [("shared", 3)]
        request = RestartRequest(min_cycles=3, force=False)
        answers = await asyncio.gather(*(client.restart("shared", request) for _ in range(3)))
        assert {(a.status, a.models) for a in answers} == {("restarted", ("org/a", "org/b"))}
        assert attached.calls.read_text().count(" restart ") == 1
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        assert (await client.restart("shared", request)).status == "kept"
        assert attached.calls.read_text().count(" restart ") == 1


async def test_a_failed_restart_is_explained_and_models_stay_ready(attached: Attached):
    """The error includes systemd's message, loaded models stay ready, and the next neuron knows the cycles."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/a"))
        script(attached.systemctl, "echo Interactive authentication required. >&2; exit 1")
        with pytest.raises(LoadFailed, match=r"Interactive authentication required\."):
            await client.restart("shared", RestartRequest(min_cycles=1))
        await until(client, lambda ms: len(ms) == 1 and all(m.url for m in ms))
    await asyncio.to_thread(attached.rig.stop)
    await asyncio.to_thread(attached.rig.start)
    async with attached.rig.client() as client:
        assert [(e.cycles, e.reachable) for e in await client.attached()] == [(1, True)]
        with pytest.raises(NotSupported, match="no engine to restart"):
            await client.restart("fake", RestartRequest())
        with pytest.raises(NotFound, match="no harness 'share'"):
            await client.restart("share", RestartRequest())


async def test_an_unknown_model_of_an_attached_engine_is_explained(attached: Attached):
    """A model that the engine was not configured with can't be loaded; the error says what to do."""
    async with attached.rig.client() as client:
        await client.load(shared("org/c"))
        models = await until(client, lambda ms: any(m.id == "org/c" and m.error for m in ms))
        error = next(m.error for m in models if m.id == "org/c")
        assert "was not configured with 'org/c'" in (error or "")


async def test_a_failed_reload_and_an_ended_engine_without_a_unit_are_explained(tmp_path: Path):
    """The error includes the engine's message; without a unit the engine can't be restarted."""
    attached = Attached(tmp_path, refuse="org/b", unit=False)
    try:
        attached.start_engine()
        attached.rig.start()
        async with attached.rig.client() as client:
            await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
            with pytest.raises(NotSupported, match="no systemd unit is configured"):
                await client.restart("shared", RestartRequest())
            await client.unload(UnloadRequest(model_id="org/b"))
            await client.load(shared("org/b"))
            models = await until(client, lambda ms: any(m.error for m in ms))
            assert "CUDA out of memory" in next(m.error or "" for m in models if m.error)
            os.kill(int(attached.pid_file.read_text()), signal.SIGKILL)
            attached.pid_file.unlink()
            await until(client, lambda ms: all(m.status is InstanceState.FAILED for m in ms))
            await client.load(shared("org/a"))
            models = await until(
                client, lambda ms: any("no unit is configured" in (m.error or "") for m in ms)
            )
            assert models
    finally:
        attached.close()


async def test_a_failure_is_cleared_once_the_engine_has_the_model(tmp_path: Path):
    """A load that failed while the engine was down is no longer shown once the engine has the model."""
    attached = Attached(tmp_path, unit=False)
    try:
        attached.rig.start()
        async with attached.rig.client() as client:
            await client.load(shared("org/a"))
            await until(client, lambda ms: [m.status for m in ms] == [InstanceState.FAILED])
            attached.start_engine()
            models = await until(client, lambda ms: any(m.url for m in ms))
            ready = [(m.id, m.error) for m in models if m.id == "org/a"]
            assert ready == [("org/a", None)]
    finally:
        attached.close()
