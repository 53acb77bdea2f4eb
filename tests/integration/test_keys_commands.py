"""`cortex keys`, `cortex usage` and `cortex config reload` against a live gateway."""

from __future__ import annotations

import asyncio
import json
import tomllib

import httpx
from demo_fleet import cortex
from rigs.engine import scripted_engine
from rigs.gateway import gateway_process, neuron_table
from rigs.neuron import scripted_neuron

from cortex_common.config.gateway import GatewayConfig
from cortex_server.auth.keys import hash_of

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


async def run(*args: str, **env: str):
    """Run one command in a thread, because the engines run in this event loop."""
    return await asyncio.to_thread(lambda: cortex(*args, **env))


async def test_the_lifecycle_of_a_key(tmp_path):
    """A key is created, listed, used and revoked; its secret is printed once, on stdout."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        env = {"CORTEX_GATEWAY_URL": gateway.url}
        empty = await run("keys", "ls", **env)
        assert (empty.stdout, empty.returncode) == ("", 0)
        assert "cortex keys create" in empty.stderr
        created = await run(
            *("keys", "create", "alice", "--model", "m", "--requests-per-minute", "5"),
            *("--expires", "90d"),
            **env,
        )
        assert created.returncode == 0, created.stderr
        secret = created.stdout.strip()
        assert secret not in created.stderr
        listed = await run("keys", "ls", **env)
        assert listed.stdout.splitlines()[1].split()[:3] == ["alice", "infer", "m"]
        assert "5 req/min" in listed.stdout
        assert secret not in (await run("keys", "ls", "-o", "json", **env)).stdout
        await gateway.until(lambda s: bool(s.instances()))
        answer = await http.post(CHAT, json=BODY, headers={"x-api-key": secret})
        assert answer.status_code == 200
        since = ("--since", "99999999d")
        used = await run("usage", "-o", "json", "--by", "key", "--by", "model", *since, **env)
        rows = json.loads(used.stdout)["items"]
        assert [(r["key"], r["model"], r["requests"], r["tokens_in"]) for r in rows] == [
            ("alice", "m", 1, 7)
        ]
        table = await run("usage", "--by", "day", **env)
        assert table.stdout.split()[:2] == ["DAY", "REQUESTS"]
        gone = await run("keys", "revoke", "alice", "--yes", **env)
        assert gone.stdout == "revoked alice\n"
        assert "no key with scope infer is left" in gone.stderr
        again = await run("keys", "revoke", "alice", "--yes", **env)
        assert again.returncode == 3


async def test_an_offline_key_is_a_configuration_entry():
    """The entry is valid and contains the hash of the secret, which is printed on stderr."""
    created = await run(
        *("keys", "create", "ci", "--offline", "--scope", "infer", "--scope", "metrics"),
        *("--max-in-flight", "3", "--expires", "2031-01-31"),
    )
    assert created.returncode == 0, created.stderr
    secret = created.stderr.split()[-1]
    entry = GatewayConfig.model_validate(tomllib.loads(created.stdout)).keys[0]
    assert entry.hash == hash_of(secret)
    assert entry.scopes == ("infer", "metrics")
    assert entry.limits.max_in_flight == 3
    assert entry.expires.year == 2031
    assert secret not in created.stdout


async def test_invalid_options_are_usage_errors():
    """An invalid name, limit or date exits with 2 without a request to the gateway."""
    for wrong in (
        ["a b"],
        ["a", "--weight", "0"],
        ["a", "--expires", "soon"],
        ["a", "--expires", "2020-01-01"],
        ["a", "--expires", "99999999d"],
    ):
        done = await run("keys", "create", *wrong, CORTEX_GATEWAY_URL="http://127.0.0.1:1")
        assert done.returncode == 2, done.stderr


async def test_the_operator_api_requires_a_key_with_the_scope(tmp_path):
    """Where the operator socket is out of reach, commands need the key; a missing or wrong one exits with 4."""
    key = f'[[keys]]\nname = "o"\nhash = "{hash_of("S")}"\nscopes = ["operator"]\n'
    async with gateway_process(tmp_path, key) as gateway:
        env = {"CORTEX_GATEWAY_URL": gateway.url, "XDG_RUNTIME_DIR": str(tmp_path / "none")}
        assert (await run("keys", "ls", **env)).returncode == 4
        assert (await run("keys", "ls", CORTEX_API_KEY="T", **env)).returncode == 4
        (tmp_path / "secret").write_text("S\n")
        good = await run("keys", "ls", "-q", CORTEX_API_KEY_FILE=str(tmp_path / "secret"), **env)
        assert good.stdout == "o\n"


async def test_config_reload_prints_the_changes_or_the_error(tmp_path):
    """One line on success; for an invalid file the error with file and key, and exit code 1."""
    async with gateway_process(tmp_path) as gateway:
        env = {"CORTEX_GATEWAY_URL": gateway.url}
        gateway.write(gateway='metrics_lisen = "127.0.0.1:1"\n')
        wrong = await run("config", "reload", **env)
        assert wrong.returncode == 1
        assert "unknown key gateway.metrics_lisen" in wrong.stderr
        assert "did you mean 'metrics_listen'?" in wrong.stderr
        gateway.write("[limits]\nmax_in_flight = 7\n")
        done = await run("config", "reload", **env)
        assert done.stdout.startswith("reloaded; changed: ")
