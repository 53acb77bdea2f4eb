"""Instances whose model config changes are replaced once they are idle, with real engines."""

from __future__ import annotations

import asyncio
import os

from lifecycle_kit import gateway, neuron, tiny, until

from cortex_common.config.catalogue import Catalogue
from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceState


async def test_a_changed_model_config_replaces_its_idle_instance_only(tmp_path):
    """After the context of one model changes, its instance is reloaded with it; the other instance is kept."""
    changed, kept = tiny(tmp_path, "changed"), tiny(tmp_path, "kept")
    async with (
        neuron(tmp_path, 2048) as node,
        gateway({"n": node.url}, (changed, kept)) as served,
    ):
        await until(lambda: served.gateway.fleet.state("n") == "up")
        for name in ("changed", "kept"):
            assert (await served.chat(name)).status_code == 200

        def ready(model: str) -> list[InstanceView]:
            views = served.gateway.fleet.snapshot.instances()
            return [v for v in views if v.model == model and v.state is InstanceState.READY]

        await until(lambda: bool(ready("changed")) and bool(ready("kept")))
        before = {name: ready(name)[0].id for name in ("changed", "kept")}
        catalogue = Catalogue(
            models=(changed.model_copy(update={"context": 128, "aliases": ("nick",)}), kept)
        )
        await served.gateway.apply(served.gateway.config, catalogue)
        await until(lambda: bool(ready("changed")) and ready("changed")[0].id != before["changed"])
        assert ready("changed")[0].context == 128
        assert [v.id for v in ready("kept")] == [before["kept"]]
        assert (await served.chat("nick")).status_code == 200


async def test_a_busy_instance_is_replaced_only_after_its_requests(tmp_path):
    """A request in flight completes on the old instance; then the new one replaces it."""
    model = tiny(tmp_path, "busy")
    async with neuron(tmp_path, 2048) as node, gateway({"n": node.url}, (model,)) as served:
        await until(lambda: served.gateway.fleet.state("n") == "up")
        assert (await served.chat("busy")).status_code == 200
        old = served.gateway.fleet.snapshot.instances()[0].id
        request = asyncio.create_task(served.chat("busy", max_tokens=2000))
        await until(lambda: any(v.in_flight for v in served.gateway.fleet.snapshot.instances()))
        catalogue = Catalogue(models=(model.model_copy(update={"context": 512}),))
        await served.gateway.apply(served.gateway.config, catalogue)
        answer = await request
        assert answer.status_code == 200
        assert answer.headers["x-cortex-instance"] == old
        await until(lambda: all(v.id != old for v in served.gateway.fleet.snapshot.instances()))


async def test_the_instance_of_a_removed_model_is_drained_and_unloaded(tmp_path):
    """A request in flight completes; then the instance is gone, and that of another model stays."""
    removed, kept = tiny(tmp_path, "removed"), tiny(tmp_path, "kept")
    async with (
        neuron(tmp_path, 2048) as node,
        gateway({"n": node.url}, (removed, kept)) as served,
    ):
        await served.chat("removed")
        await served.chat("kept")
        request = asyncio.create_task(served.chat("removed", max_tokens=500))
        await until(lambda: any(v.in_flight for v in served.gateway.fleet.snapshot.instances()))
        await served.gateway.apply(served.gateway.config, Catalogue(models=(kept,)))
        assert (await request).status_code == 200
        await until(
            lambda: [v.model for v in served.gateway.fleet.snapshot.instances()] == ["kept"]
        )


async def test_a_fixed_model_config_is_loaded_immediately(tmp_path):
    """The backoff after failures of the old model config does not apply to the new one."""
    fixed = tiny(tmp_path, "fixed")
    broken = fixed.model_copy(update={"source": "/nowhere.gguf"})
    async with neuron(tmp_path, 2048) as node, gateway({"n": node.url}, (broken,)) as served:
        await until(lambda: served.gateway.fleet.state("n") == "up")
        assert (await served.chat("fixed")).status_code == 503
        await served.gateway.apply(served.gateway.config, Catalogue(models=(fixed,)))
        answer = await served.chat("fixed")
        assert answer.status_code == 200, answer.text


async def test_a_configured_size_overrides_the_estimate_of_a_node(tmp_path):
    """A model that was rejected because of its file size is loaded once its model config sets the size."""
    sized = tiny(tmp_path, "sized")
    os.truncate(tmp_path / "sized.gguf", 4 << 30)
    unsized = sized.model_copy(update={"vram_mb": None})
    async with neuron(tmp_path, 2048) as node, gateway({"n": node.url}, (unsized,)) as served:
        await until(lambda: served.gateway.fleet.state("n") == "up")
        assert (await served.chat("sized")).status_code == 507
        await served.gateway.apply(served.gateway.config, Catalogue(models=(sized,)))
        answer = await served.chat("sized")
        assert answer.status_code == 200, answer.text
