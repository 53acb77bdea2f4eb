from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from demo_fleet import DemoFleet, demo_fleet, environment, free_port
from rigs.forkserver import CortexProcess

from cortex_cli.tui.source import GatewaySource, ReplaySource
from cortex_common.schema.fleet import FleetSnapshot


@pytest.fixture(scope="module")
def fleet():
    """Run a fleet with demo/ada ready, demo/bob and demo/cleo not loaded."""
    with demo_fleet("--port", str(free_port())) as running:
        yield running


def items(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    """Return the items of a JSON list."""
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)["items"]
    assert isinstance(values, list)
    return values


@contextmanager
def lines_of(*args: str, **env: str) -> Iterator[tuple[CortexProcess, queue.Queue[str]]]:
    """Run a command that does not exit, and yield the lines of its stdout and stderr as they arrive."""
    output: queue.Queue[str] = queue.Queue()
    with TemporaryDirectory(prefix="cortex-test-") as folder:
        pipe = Path(folder) / "lines"
        os.mkfifo(pipe)
        process = CortexProcess(args, pipe, environ=environment(**env))

        def read() -> None:
            with pipe.open(encoding="utf-8") as lines:
                for line in lines:
                    output.put(line.rstrip("\n"))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield process, output
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                finally:
                    process.kill()  # otherwise the test would hang instead of failing
            reader.join()


def until(output: queue.Queue[str], words: str, seconds: float = 30.0) -> str:
    """Return the first line that contains the words."""
    deadline = time.monotonic() + seconds
    while True:
        line = output.get(timeout=max(0.01, deadline - time.monotonic()))
        if words in line:
            return line


def test_status_of_a_healthy_fleet(fleet: DemoFleet):
    """`cortex status` of a healthy fleet prints ok and exits with 0."""
    done = fleet.process("status")

    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"ok  gateway {fleet.url}")
    assert "nodes 1/1" in done.stdout


def test_status_as_json_is_the_whole_snapshot(fleet: DemoFleet):
    """`cortex status -o json` contains nodes, devices and models as the operator API returns them."""
    document = json.loads(fleet.cortex("status", "-o", "json").stdout)

    assert document["kind"] == "Status"
    assert document["problems"] == []
    assert {m["id"] for m in document["fleet"]["models"]} == {"demo/ada", "demo/bob", "demo/cleo"}


def test_load_then_unload(fleet: DemoFleet):
    """A loaded model is listed by `ps` with its memory until it is unloaded."""
    loaded = fleet.cortex("models", "load", "demo/bob")
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("loaded demo/bob on here in ")
    (row,) = [i for i in items(fleet.cortex("ps", "--json")) if i["model"] == "demo/bob"]
    assert row["state"] == "ready"
    assert isinstance(row["vram_used_mb"], int)
    assert row["vram_used_mb"] > 10

    unloaded = fleet.cortex("models", "unload", "demo/bob")
    assert unloaded.returncode == 0, unloaded.stderr
    assert "demo/bob" not in fleet.cortex("ps", "-q").stdout.split()


def test_loading_a_loaded_model_succeeds(fleet: DemoFleet):
    """`models load` of a ready model returns immediately and exits with 0."""
    fleet.cortex("models", "load", "demo/ada")
    done = fleet.cortex("models", "load", "demo/ada")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loaded demo/ada on here")


def test_models_from_patterns_and_stdin(fleet: DemoFleet):
    """`models ls` accepts patterns, and `models load -` reads names from stdin."""
    assert fleet.cortex("models", "ls", "demo/?o*", "-q").stdout.split() == ["demo/bob"]
    done = fleet.cortex("models", "load", "-", stdin="demo/ada\n")

    assert done.stdout.startswith("loaded demo/ada")


def test_a_pattern_without_matches(fleet: DemoFleet):
    """The message says how many models there are in total."""
    done = fleet.cortex("models", "ls", "nix*")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no matches (3 total)\n")


def test_an_unknown_model_exits_with_3(fleet: DemoFleet):
    """The error of an unknown model suggests a similar name, and the exit code is 3."""
    done = fleet.cortex("models", "load", "demo/adda")

    assert (done.returncode, done.stdout) == (3, "")
    assert "demo/ada" in done.stderr


def test_an_unknown_node_exits_with_3(fleet: DemoFleet):
    """An unknown node is an error with exit code 3."""
    assert fleet.cortex("models", "load", "demo/ada", "--node", "mars").returncode == 3


def test_partial_success_exits_with_8(fleet: DemoFleet):
    """If one of two models does not exist, the other is loaded and the exit code is 8."""
    done = fleet.cortex("models", "load", "demo/ada", "demo/nobody")

    assert done.returncode == 8
    assert "loaded demo/ada" in done.stdout
    assert "1 of 2 failed" in done.stderr


def test_json_results_of_an_action(fleet: DemoFleet):
    """`-o json` of an action is one document with the gateway's response or the error for each name."""
    done = fleet.cortex("models", "load", "demo/ada", "demo/nobody", "-o", "json")
    document = json.loads(done.stdout)
    loaded, failed = document["items"]

    assert (done.returncode, document["kind"]) == (8, "ResultList")
    assert (loaded["name"], loaded["action"], loaded["outcome"]) == ("demo/ada", "load", "done")
    assert (loaded["result"]["state"], loaded["error"]) == ("ready", None)
    assert (failed["outcome"], failed["result"]) == ("failed", None)
    assert failed["error"]["code"] == "model_not_found"
    assert failed["error"]["message"] == "model 'demo/nobody' does not exist"


def test_a_failed_action_writes_its_document(fleet: DemoFleet):
    """An error is in the document on stdout, in the message on stderr, and in the exit code."""
    done = fleet.cortex("nodes", "cordon", "mars", "--json")

    assert done.returncode == 3
    assert json.loads(done.stdout)["items"][0]["error"]["code"] == "node_not_found"
    assert done.stderr.startswith("error: ")


def test_a_dry_run_is_the_plan_as_data(fleet: DemoFleet):
    """With --dry-run, the result of each name is the plan that `cortex plan` shows."""
    fleet.cortex("models", "load", "demo/ada")
    (plan,) = items(fleet.cortex("plan", "drain", "here", "-o", "json"))
    (planned,) = items(fleet.cortex("nodes", "drain", "here", "--dry-run", "-o", "json"))

    assert (planned["action"], planned["outcome"]) == ("drain", "planned")
    assert planned["result"] == plan


def test_nodes_from_patterns(fleet: DemoFleet):
    """Actions on nodes accept patterns, and `-o name` prints the matching nodes."""
    assert fleet.cortex("nodes", "uncordon", "he*", "-o", "name").stdout == "here\n"
    assert "no node matches" in fleet.cortex("nodes", "cordon", "mars*").stderr


def test_several_failures_are_reported_once_each(fleet: DemoFleet):
    """If the action fails on all names, each error is written once, and the exit code is that of the first."""
    done = fleet.cortex("models", "load", "demo/nobody", "demo/nothing")

    assert done.returncode == 3
    assert (done.stderr.count("demo/nobody"), done.stderr.count("demo/nothing")) == (1, 1)


def test_unload_patterns_match_loaded_models_only(fleet: DemoFleet):
    """`unload '*'` applies to loaded models only; if there are none, it prints a message and exits with 0."""
    fleet.cortex("models", "load", "demo/bob", "--wait")
    first = fleet.cortex("models", "unload", "demo/*")
    again = fleet.cortex("models", "unload", "demo/*")

    assert (first.returncode, "unloaded demo/bob" in first.stdout) == (0, True), first.stderr
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "no matching model is loaded\n"


def test_chat_writes_only_the_response_to_stdout(fleet: DemoFleet):
    """In a pipe, `cortex chat` writes the response to stdout, and statistics to stderr."""
    done = fleet.process("chat", "demo/ada", "hello", "--max-tokens", "12")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 1
    assert "demo/ada" not in done.stdout
    assert "on here, 12 tokens, first after" in done.stderr


def test_chat_reads_the_prompt_from_a_pipe(fleet: DemoFleet):
    """The prompt is read from stdin, and a ready model is used by default."""
    done = fleet.cortex("chat", "--max-tokens", "5", "--no-stats", stdin="hello\n")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.startswith("using demo/")


def test_chat_with_an_unknown_model_exits_with_3(fleet: DemoFleet):
    """The gateway's 404 is an error with exit code 3."""
    done = fleet.cortex("chat", "demo/nobody", "hello")

    assert (done.returncode, done.stdout) == (3, "")


def test_version_lists_all_components(fleet: DemoFleet):
    """`cortex version` lists the command, the gateway and each node."""
    found = items(fleet.cortex("version", "-o", "json"))

    assert [f["part"] for f in found] == ["command", "gateway", "node"]
    assert len({f["version"] for f in found}) == 1


def test_devices_and_nodes(fleet: DemoFleet):
    """`gpus ls` and `nodes ls` show the host's CPU device with its memory."""
    (device,) = items(fleet.cortex("gpus", "ls", "--json"))
    (node,) = items(fleet.cortex("nodes", "ls", "--json"))

    assert (device["node"], device["kind"], device["vram_total_mb"]) == ("here", "cpu", 520)
    assert (node["name"], node["state"]) == ("here", "up")


def test_a_load_plan_changes_nothing(fleet: DemoFleet):
    """`plan load` shows the device, the size and the verdict, and loads nothing."""
    fleet.cortex("models", "load", "demo/ada")
    before = fleet.cortex("ps", "-q").stdout
    done = fleet.cortex("plan", "load", "demo/bob")

    assert done.returncode == 0, done.stderr
    assert "demo/bob would be loaded on here/0" in done.stdout
    assert "256M" in done.stdout
    assert fleet.cortex("models", "load", "demo/bob", "--dry-run").stdout == done.stdout
    assert fleet.cortex("ps", "-q").stdout == before


def test_a_model_that_does_not_fit(fleet: DemoFleet):
    """While pinned models use all memory, plan and load exit with 6 and the reason; after unpinning, it fits."""
    fleet.cortex("models", "load", "demo/ada", "demo/bob", "--pin")
    plan = fleet.cortex("plan", "load", "demo/cleo", "-o", "json")
    (item,) = json.loads(plan.stdout)["items"]
    assert (plan.returncode, item["action"]) == (6, "impossible")
    assert item["ledger"][0]["reason"]
    load = fleet.cortex("models", "load", "demo/cleo", "--timeout", "20s")
    assert load.returncode == 6
    assert "fits on no device" in load.stderr

    assert fleet.cortex("models", "unpin", "demo/ada", "demo/bob").returncode == 0
    assert fleet.cortex("plan", "load", "demo/cleo").returncode == 0


def test_evict(fleet: DemoFleet):
    """`models evict` evicts an instance, with --dry-run only shows it, and the model can be used again afterwards."""
    fleet.cortex("models", "load", "demo/ada")
    seen = fleet.cortex("models", "evict", "demo/ada", "--dry-run")
    assert seen.stdout.startswith("evicts demo/ada from here"), seen.stderr
    done = fleet.cortex("models", "evict", "demo/ada")

    assert done.stdout == "evicted demo/ada from here; it is unloaded\n", done.stderr
    assert "demo/ada" not in fleet.cortex("ps", "-q").stdout.split()
    assert fleet.cortex("chat", "demo/ada", "hi", "--max-tokens", "4").returncode == 0


def test_cordon_and_uncordon(fleet: DemoFleet):
    """A cordoned node is shown as such by `nodes ls` and rejects loads until it is uncordoned."""
    assert fleet.cortex("nodes", "cordon", "here").stdout == "cordoned here\n"
    try:
        assert items(fleet.cortex("nodes", "ls", "--json"))[0]["cordoned"] is True
        assert fleet.cortex("models", "load", "demo/cleo", "--timeout", "5s").returncode == 6
    finally:
        assert fleet.cortex("nodes", "uncordon", "here").returncode == 0
    assert items(fleet.cortex("nodes", "ls", "--json"))[0]["cordoned"] is False


def test_drain_requires_confirmation(fleet: DemoFleet):
    """`nodes drain` without a terminal and without --yes exits with 2; with --yes it drains the node."""
    fleet.cortex("models", "load", "demo/ada")
    assert fleet.cortex("nodes", "drain", "here").returncode == 2
    seen = fleet.cortex("nodes", "drain", "here", "--dry-run")
    assert (seen.returncode, "unloads demo/ada" in seen.stdout) == (0, True), seen.stderr
    done = fleet.cortex("nodes", "drain", "here", "--yes")
    try:
        assert done.returncode == 0, done.stderr
        assert fleet.cortex("ps", "-q").stdout == ""
    finally:
        fleet.cortex("nodes", "uncordon", "here")


def test_describe_shows_estimate_and_measurement(fleet: DemoFleet):
    """`models describe` shows the estimate of the model config and the measurement of a load."""
    fleet.cortex("models", "load", "demo/ada")
    text = fleet.cortex("models", "describe", "demo/ada").stdout
    document = json.loads(fleet.cortex("models", "describe", "demo/ada", "-o", "json").stdout)

    assert "256M over 1 device(s), from models.toml" in text
    assert document["detail"]["measured"][0]["node"] == "here"
    assert document["instances"][0]["model"] == "demo/ada"


def test_bash_completes_models_of_the_fleet(fleet: DemoFleet):
    """In a real bash, the completion script completes names of the fleet's models."""
    script = (
        f'cortex() {{ {shlex.quote(sys.executable)} -m cortex_cli "$@"; }}\n'
        'eval "$(cortex completion bash)"\n'
        "COMP_WORDS=(cortex models load demo/b); COMP_CWORD=3\n"
        '_cortex_completion cortex; echo "${COMPREPLY[*]}"\n'
        "COMP_WORDS=(cortex mod); COMP_CWORD=1\n"
        '_cortex_completion cortex; echo "${COMPREPLY[*]}"\n'
    )
    # The script runs the program by `env`, which does not see shell functions.
    script = script.replace(
        "_cortex_completion cortex;", f"_cortex_completion '{Path(sys.executable).parent}/cortex';"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment(CORTEX_GATEWAY_URL=fleet.url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split() == ["demo/bob", "models"], done.stderr


def test_defrag_with_nothing_to_gain(fleet: DemoFleet):
    """With a single device no move helps: `defrag` prints so, without confirmation, and exits with 0."""
    done = fleet.cortex("defrag")

    assert done.returncode == 0, done.stderr
    assert "no moves" in done.stdout
    assert fleet.cortex("defrag", "--apply", "stale-plan").returncode == 6


async def test_a_session_is_recorded_and_replayed(fleet: DemoFleet, tmp_path: Path):
    """A recording of `top --record` is replayed in order, and `top --once` shows its last snapshot."""
    path = tmp_path / "session.jsonl"
    versions: list[int] = []
    with path.open("w") as file:
        async with aclosing(GatewaySource(fleet.url, file).follow()) as updates:
            async for update in updates:
                if isinstance(update, FleetSnapshot):
                    versions.append(update.version)
                if len(versions) == 3:
                    break
    replayed: list[int] = []
    async with aclosing(ReplaySource(path, speed=1000).follow()) as updates:
        async for update in updates:
            if isinstance(update, FleetSnapshot):
                replayed.append(update.version)
            if len(replayed) == 3:
                break

    assert replayed == versions
    assert fleet.process("top", "--once", "--replay", str(path)).stdout.startswith("ok  gateway")
    assert fleet.process("top", "--once", "--replay", __file__).returncode == 1


def test_top_without_a_terminal_prints_once(fleet: DemoFleet):
    """`cortex top` in a pipe prints the state and exits."""
    done = fleet.process("top")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok  gateway ")


def test_bench_measures_saves_and_compares(fleet: DemoFleet, tmp_path: Path):
    """A run counts every request and token, can be saved, and later runs can be compared with it."""
    saved = tmp_path / "run.json"
    options = ("--requests", "4", "--concurrency", "1,2", "--output-tokens", "8", "--warmup", "0")
    done = fleet.cortex("bench", "demo/ada", "--cold", "--save", str(saved), *options)
    assert done.returncode == 0, done.stderr
    run = json.loads(saved.read_text())

    assert run["cold_load_s"] > 0.1
    assert [x["concurrency"] for x in run["levels"]] == [1, 2]
    for level in run["levels"]:
        assert (level["requests"], level["errors"]) == (4, {})
        assert level["tokens_per_s"] * level["seconds"] == pytest.approx(32, rel=0.01)
        assert level["first_token"]["p50"] <= level["total"]["p50"]
    again = fleet.cortex("bench", "demo/ada", "--compare", str(saved), *options)
    assert "ttft p50 ms" in again.stdout


def test_bench_of_an_unknown_model_counts_errors(fleet: DemoFleet):
    """Errors are counted by code, and the exit code is 1."""
    done = fleet.cortex("bench", "demo/nobody", "--requests", "2", "--concurrency", "1", "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout)["levels"][0]["errors"] == {"model_not_found": 2}


def test_doctor_of_a_healthy_fleet(fleet: DemoFleet):
    """`cortex doctor` exits with 0 for the demo and with 1 without a gateway."""
    done = fleet.cortex("doctor", "--json")

    assert done.returncode == 0, done.stdout
    assert {"gateway", "versions", "models"} <= {str(f["check"]) for f in items(done)}
    lost = fleet.cortex("doctor", "--gateway", "http://127.0.0.1:9")
    assert lost.returncode == 1
    assert "can't be reached" in lost.stdout


def test_events_are_followed(fleet: DemoFleet):
    """`cortex events -w` writes a line for each event, with its actor."""
    with lines_of("events", "-w", "--since", "1h", "--filter", "cleo", "-g", fleet.url) as (
        _,
        seen,
    ):
        fleet.cortex("models", "load", "demo/cleo")
        assert "anonymous" in until(seen, "load_requested")
        until(seen, "instance_ready")
        fleet.cortex("models", "unload", "demo/cleo")
        assert "reason=operator" in until(seen, "instance_unloaded   anonymous")
    again = items(
        fleet.cortex("events", "--type", "unload_requested", "--filter", "cleo", "--json")
    )
    assert [e["actor"] for e in again] == ["anonymous"] * len(again) != []
    assert "no matches" in fleet.cortex("events", "--type", "no_such_event").stderr


def test_engine_logs(fleet: DemoFleet):
    """`models logs` prints the engine's log, `-f` follows it, and an unknown model exits with 3."""
    fleet.cortex("models", "load", "demo/ada")
    assert "mistral.rs version" in fleet.cortex("models", "logs", "demo/ada").stdout
    assert fleet.cortex("models", "logs", "demo/ada", "--tail", "1").stdout.count("\n") == 1
    with lines_of("models", "logs", "demo/ada", "-f", "-g", fleet.url) as (_, seen):
        until(seen, "mistral.rs version")

    assert fleet.cortex("models", "logs", "demo/nobody").returncode == 3


def test_daemon_logs(fleet: DemoFleet):
    """`logs` shows the logs of gateway and node, `-f` follows them, and NODE/MODEL selects an engine."""
    node = json.loads(fleet.cortex("nodes", "ls", "--json").stdout)["items"][0]["name"]
    assert "gateway_listening" in fleet.cortex("logs", "gateway").stdout
    shown = items(fleet.cortex("logs", node, "-o", "json", "--level", "info"))
    assert {"neuron_listening"} <= {line["event"] for line in shown}
    with lines_of("logs", "gateway", "-f", "-g", fleet.url) as (_, seen):
        until(seen, "gateway_listening")
        fleet.cortex("keys", "create", "witness", "--scope", "metrics")
        until(seen, "key=witness")
    fleet.cortex("keys", "revoke", "witness")
    with lines_of("logs", node, "-f", "-g", fleet.url) as (_, seen):
        until(seen, "neuron_listening")
    fleet.cortex("models", "load", "demo/ada")
    assert "mistral.rs version" in fleet.cortex("logs", f"{node}/demo/ada").stdout
    assert fleet.cortex("logs", "demo/ada", "--level", "warn").returncode == 2
    done = fleet.cortex("logs", "gatway")
    assert (done.returncode, "'gateway'" in done.stderr) == (3, True)


def test_the_running_settings_are_shown(fleet: DemoFleet):
    """`config show --running` shows the gateway's settings, each with its origin."""
    found = {s["key"]: s for s in items(fleet.cortex("config", "show", "--running", "--json"))}

    assert found["gateway.listen"]["value"] == fleet.url.removeprefix("http://")
    assert str(found["gateway.listen"]["origin"]).endswith("cortex.toml:2")


def test_watch_reconnects(fleet: DemoFleet, tmp_path: Path):
    """`ps --watch -o json` writes a line at each change, reports a lost connection, and continues after it."""
    neuron = json.loads(fleet.cortex("nodes", "ls", "--json").stdout)["items"][0]["endpoint"]
    port = free_port()
    config = tmp_path / "cortex.toml"
    config.write_text(
        f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:0"\n'
        f'[[neurons]]\nname = "here"\nendpoint = "{neuron}"\n'
    )
    serve = ("serve", "gateway", "--config", str(config), "--log-format", "console")
    url = f"http://127.0.0.1:{port}"
    with lines_of("ps", "--watch", "--json", CORTEX_GATEWAY_URL=url) as (watch, seen):
        until(seen, "lost: ")
        with lines_of(*serve) as (gateway, log):
            until(log, "gateway_listening")
            assert json.loads(until(seen, '"demo/ada"'))["node"] == "here"
            gateway.kill()
        until(seen, "lost: ")
        with lines_of(*serve) as (gateway, log):
            until(log, "gateway_listening")
            assert json.loads(until(seen, '"demo/ada"'))["state"] == "ready"
            gateway.kill()
        watch.send_signal(signal.SIGINT)

        assert watch.wait(20) == 130
