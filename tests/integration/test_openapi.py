"""The OpenAPI documents of both daemons describe what they do: schemathesis tries to find a difference."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
from engines.served_neuron import served
from rigs.gateway import gateway_process, neuron_table
from rigs.inprocess_gateway import running_gateway
from rigs.neuron import scripted_neuron

from cortex_common.config.access import KeyEntry
from cortex_common.config.neuron import NeuronConfig
from cortex_common.schema.fleet import NodeState
from cortex_common.schema.keys import Scope
from cortex_common.schema.operation import OPERATOR_PREFIX
from cortex_common.schema.operations import (
    CANCEL,
    DEFRAG,
    DRAIN,
    LOAD,
    OPERATIONS,
    PLAN_LOAD,
    RELOAD,
)
from cortex_server.auth.keys import hash_of
from cortex_server.proxy.routes import ROUTES

TESTED = (
    *("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/messages", "/v1/responses"),
    *(f"{OPERATOR_PREFIX}{o.path}" for o in (LOAD, DRAIN, DEFRAG, PLAN_LOAD, CANCEL, RELOAD)),
)
"""Inference routes and operations that stand for the others, which have the same code and similar bodies."""

RIGS = Path(__file__).parents[1] / "rigs"

KEY = f'[[keys]]\nname = "all"\nhash = "{hash_of("all")}"\nscopes = ["infer", "operator"]\n'


async def run_schemathesis(folder: Path, url: str, *excluded: str, settings: str = "") -> None:
    """Run all checks against a daemon, with the same requests in every run.

    Args:
        folder: for its configuration.
        url: base URL of the daemon.
        excluded: routes that never end, or differ from another one in the path only.
        settings: further settings.
    """
    config = folder / "schemathesis.toml"
    config.write_text(f'[auth.openapi.bearer]\nbearer = "all"\n{settings}')
    document = folder / "openapi.json"
    async with httpx.AsyncClient(headers={"authorization": "Bearer all"}) as client:
        document.write_bytes((await client.get(f"{url}/openapi.json")).content)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}"),
        *(
            "run",
            str(document),
            f"--url={url}",
            *(f"--exclude-path={path}" for path in excluded),
            "--checks=all",
        ),
        *("--phases=coverage", "--seed=1", "--no-shrink", "--generation-database=none"),
        *("--workers=1", "--request-timeout=60", "--no-color"),
        cwd=folder,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(RIGS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await program.communicate()
    assert program.returncode == 0, output.decode()


async def test_the_gateway_does_what_its_document_says(tmp_path: Path):
    """No 5xx, and no status, type, field, method or missing key that is not documented."""
    async with scripted_neuron({}) as neuron:
        tables = (KEY, neuron_table("n", neuron.url))
        async with gateway_process(tmp_path, *tables) as gateway:
            async with gateway.operator("all") as operator, asyncio.timeout(30):
                while (await operator.fleet()).nodes[0].state is not NodeState.UP:
                    await asyncio.sleep(0.02)
            paths = {route.path for route in ROUTES.values()}
            paths |= {OPERATOR_PREFIX + operation.path for operation in OPERATIONS}
            alike = sorted(paths.difference(TESTED))
            await run_schemathesis(tmp_path, gateway.url, "/operator/v1/events", *alike)
            await check_document(gateway.url)


async def test_a_neuron_does_what_its_document_says(tmp_path: Path):
    """The same for a neuron without devices and engines."""
    config = NeuronConfig.model_validate(
        {"neuron": {"state_dir": tmp_path / "state", "token": "all"}}
    )
    async with served(config, ()) as neuron:
        # A load with a harness that the node lacks is a 400, which no schema can express.
        no_harness = (
            '[[operations]]\ninclude-name = "POST /models/load"\n'
            "checks.positive_data_acceptance.expected-statuses = [200, 202, 400, 409, 507]\n"
        )
        await run_schemathesis(tmp_path, neuron.url, "/events", settings=no_harness)


async def check_document(url: str) -> None:
    """Check that the document has all inference routes, the keys that they need, and no 422."""
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": "all"}) as client:
        document = (await client.get("/openapi.json")).json()
        for route in ROUTES.values():
            operation = document["paths"][route.path]["post"]
            assert operation["security"] == [{"bearer": []}, {"apiKey": []}]
            assert {"200", "400", "401", "403", "404", "413", "429", "503"} <= {
                *operation["responses"]
            }
        assert document["paths"]["/health"]["get"]["security"] == []
        assert '"422"' not in str(document).replace("'", '"')


METHODS = (
    ("PATCH", "/operator/v1/keys", "GET, POST"),
    ("GET", "/v1/chat/completions", "POST"),
    ("PUT", "/v1/messages", "POST"),
    ("DELETE", "/health", "GET, HEAD"),
    ("DELETE", "/operator/v1/models/load", "POST"),
)


async def test_a_405_names_all_methods_of_its_path():
    """RFC 9110, 15.5.6; in Anthropic's format on its routes."""
    key = KeyEntry(name="all", hash=hash_of("all"), scopes=tuple(Scope))
    async with running_gateway(keys=(key,)) as gateway, httpx.AsyncClient() as client:
        client.headers["x-api-key"] = "all"
        for method, path, allow in METHODS:
            answer = await client.request(method, gateway.url + path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow), (method, path)
            assert answer.json()["error"]["message"]
