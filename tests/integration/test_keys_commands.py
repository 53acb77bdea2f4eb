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
    """One command, beside the engines that live in this loop."""
    return await asyncio.to_thread(lambda: cortex(*args, **env))


async def test_the_life_of_a_key_by_commands(tmp_path):
    """Made, listed, used, its usage shown, revoked; the secret is on stdout once and nowhere else."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        here = {"CORTEX_GATEWAY_URL": gateway.url}
        nothing = await run("keys", "ls", **here)
        assert (nothing.stdout, nothing.returncode) == ("", 0)
        assert "cortex keys create" in nothing.stderr
        made = await run(
            *("keys", "create", "alice", "--model", "m", "--requests-per-minute", "5"),
            *("--expires", "90d"),
            **here,
        )
        assert made.returncode == 0, made.stderr
        secret = made.stdout.strip()
        assert secret not in made.stderr
        listed = await run("keys", "ls", **here)
        assert listed.stdout.splitlines()[1].split()[:3] == ["alice", "infer", "m"]
        assert "5 req/min" in listed.stdout
        assert secret not in (await run("keys", "ls", "-o", "json", **here)).stdout
        await gateway.until(lambda s: bool(s.instances()))
        answer = await http.post(CHAT, json=BODY, headers={"x-api-key": secret})
        assert answer.status_code == 200
        since = ("--since", "99999999d")
        used = await run("usage", "-o", "json", "--by", "key", "--by", "model", *since, **here)
        rows = json.loads(used.stdout)["items"]
        assert [(r["key"], r["model"], r["requests"], r["tokens_in"]) for r in rows] == [
            ("alice", "m", 1, 7)
        ]
        table = await run("usage", "--by", "day", **here)
        assert table.stdout.split()[:2] == ["DAY", "REQUESTS"]
        gone = await run("keys", "revoke", "alice", "--yes", **here)
        assert gone.stdout == "revoked alice\n"
        assert "no key of the scope infer is left" in gone.stderr
        again = await run("keys", "revoke", "alice", "--yes", **here)
        assert again.returncode == 3


async def test_an_offline_key_is_an_entry_for_the_configuration():
    """The entry loads, holds the hash of the secret that was told on stderr, and not the secret."""
    made = await run(
        *("keys", "create", "ci", "--offline", "--scope", "infer", "--scope", "metrics"),
        *("--max-in-flight", "3", "--expires", "2031-01-31"),
    )
    assert made.returncode == 0, made.stderr
    secret = made.stderr.split()[-1]
    entry = GatewayConfig.model_validate(tomllib.loads(made.stdout)).keys[0]
    assert entry.hash == hash_of(secret)
    assert entry.scopes == ("infer", "metrics")
    assert entry.limits.max_in_flight == 3
    assert entry.expires.year == 2031
    assert secret not in made.stdout


async def test_wrong_wishes_are_told_at_the_command_line():
    """A bad name, limit or date ends with 2 before any gateway is asked."""
    for wrong in (
        ["a b"],
        ["a", "--weight", "0"],
        ["a", "--expires", "soon"],
        ["a", "--expires", "2020-01-01"],
        ["a", "--expires", "99999999d"],
    ):
        done = await run("keys", "create", *wrong, CORTEX_GATEWAY_URL="http://127.0.0.1:1")
        assert done.returncode == 2, done.stderr


async def test_a_guarded_operator_api_asks_the_command_for_its_key(tmp_path):
    """With an operator key configured the command needs it; the wrong one ends with 4."""
    key = f'[[keys]]\nname = "o"\nhash = "{hash_of("S")}"\nscopes = ["operator"]\n'
    async with gateway_process(tmp_path, key) as gateway:
        here = {"CORTEX_GATEWAY_URL": gateway.url}
        assert (await run("keys", "ls", **here)).returncode == 4
        assert (await run("keys", "ls", CORTEX_API_KEY="T", **here)).returncode == 4
        (tmp_path / "secret").write_text("S\n")
        good = await run("keys", "ls", "-q", CORTEX_API_KEY_FILE=str(tmp_path / "secret"), **here)
        assert good.stdout == "o\n"


async def test_config_reload_tells_what_changed_or_what_is_wrong(tmp_path):
    """One line on success; on a wrong file the error with file and key, and exit code 1."""
    async with gateway_process(tmp_path) as gateway:
        here = {"CORTEX_GATEWAY_URL": gateway.url}
        gateway.write(gateway='metrics_lisen = "127.0.0.1:1"\n')
        wrong = await run("config", "reload", **here)
        assert wrong.returncode == 1
        assert "unknown key gateway.metrics_lisen" in wrong.stderr
        assert "did you mean 'metrics_listen'?" in wrong.stderr
        gateway.write("[limits]\nmax_in_flight = 7\n")
        done = await run("config", "reload", **here)
        assert done.stdout.startswith("reloaded; changed: ")
