"""The gateway's metrics and logs: every metric of dashboards and alerts exists, and no secret or prompt appears."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rigs.engine import scripted_engine
from rigs.gateway import gateway_process, neuron_table
from rigs.inprocess_gateway import running_gateway
from rigs.neuron import scripted_neuron

from cortex_common.client.gateway import OperatorClient
from cortex_server.auth.keys import hash_of

CONFIG = Path(__file__).parents[2] / "config"
CHAT = "/v1/chat/completions"
NAME = re.compile(r"\bcortex_[a-z_]+[a-z]\b")


def names_in(text: str) -> set[str]:
    """Return the metrics that expressions name, without the endings of their samples."""
    return {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in NAME.findall(text)}


def expressions() -> dict[str, list[str]]:
    """Return all expressions of the dashboard and of the alert rules."""
    dashboard = json.loads((CONFIG / "grafana" / "cortex.json").read_text())
    panels = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", ())]
    rules = (CONFIG / "prometheus" / "cortex-alerts.yml").read_text()
    alerts = re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n        (?:for|labels):", rules)
    return {"dashboard": panels, "alerts": alerts}


async def test_dashboard_and_alerts_use_metrics_that_exist():
    """Every metric in an expression is exposed, and every exposed metric is used in a panel or an alert."""
    async with (
        running_gateway() as served,
        httpx.AsyncClient(base_url=served.metrics_url) as http,
    ):
        text = (await http.get("/metrics")).text
    exposed = {family.name for family in text_string_to_metric_families(text)}
    found = expressions()
    assert len(found["alerts"]) == 16
    used = {name for part in found.values() for e in part for name in names_in(e)}
    assert used - exposed == set()
    assert exposed - used == set()


async def test_requests_move_the_numbers_and_unknown_models_make_no_labels():
    """A stream counts tokens, times and overhead for its model and node; a hundred unknown models make one series."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(neurons={"n": neuron.url}) as served,
        httpx.AsyncClient() as http,
    ):
        async with asyncio.timeout(10):
            while not served.gateway.fleet.ready("m"):
                await asyncio.sleep(0.01)
        body = {"model": "m", "messages": [], "stream": True}
        assert (await http.post(served.url + CHAT, json=body)).status_code == 200
        for number in range(100):
            await http.post(served.url + CHAT, json=body | {"model": f"invented-{number}"})
        await served.wait_idle()
        answer = await http.get(f"{served.metrics_url}/metrics")
        got = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in text_string_to_metric_families(answer.text)
            for s in family.samples
        }
        here = (("model", "m"), ("node", "n"))
        assert got["cortex_requests_total", here] == 1
        assert got["cortex_prompt_tokens_total", here] == 7
        assert got["cortex_completion_tokens_total", here] == 3
        assert got["cortex_time_to_first_token_seconds_count", here] == 1
        assert got["cortex_overhead_seconds_count", ()] == 1
        assert got["cortex_node_up", (("node", "n"),)] == 1
        assert ("cortex_event_loop_lag_seconds_count", ()) in got  # one check a second
        nowhere = (("code", "model_not_found"), ("model", "none"), ("node", "none"))
        assert got["cortex_request_errors_total", (*nowhere, ("side", "client"))] == 100
        assert "invented" not in answer.text


async def test_secrets_and_prompts_are_never_exposed(tmp_path):
    """After good and bad requests with keys and prompts, no log, metric, file or listing contains any of them."""
    secrets = ("K3Y-of-the-client", "K3Y-of-the-operator", "K3Y-that-is-wrong", "K3Y-of-the-node")
    keys = "".join(
        f'[[keys]]\nname = "{name}"\nhash = "{hash_of(secret)}"\nscopes = ["{scope}"]\n'
        for name, secret, scope in (("c", secrets[0], "infer"), ("o", secrets[1], "operator"))
    )
    (tmp_path / "node-token").write_text(secrets[3])
    texts = []
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}, token=secrets[3]) as neuron,
        gateway_process(
            tmp_path,
            neuron_table("n", neuron.url, token_file=str(tmp_path / "node-token")),
            keys,
            arguments=("--log-level", "debug"),
            gateway=f'state_dir = "{tmp_path}/state"\n',
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
        OperatorClient(gateway.url, who="the gateway", token=secrets[1]) as operator,
    ):
        async with asyncio.timeout(10):
            while not (await operator.fleet()).instances():
                await asyncio.sleep(0.02)
        prompt = "PR0MPT-of-a-user"
        for model in ("m", "unknown"):
            for secret in secrets[:3]:
                body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
                headers = {"authorization": f"Bearer {secret}"}
                await http.post(CHAT, json=body, headers=headers)
                broken = {"content-type": "application/json"} | headers
                await http.post(CHAT, content=f'{{"model": {prompt}', headers=broken)
        answer = await http.get("/operator/v1/keys", headers={"x-api-key": secrets[1]})
        metrics = await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")
        kept = await http.get("/operator/v1/logs?lines=9999", headers={"x-api-key": secrets[1]})
        assert '"gateway_listening"' in kept.text
        usage = await operator.usage()
        assert {row.key for row in usage} == {"c"}
        await asyncio.sleep(0.3)  # the access log is written ten times a second
        texts = [answer.text, metrics.text, gateway.log, kept.text]
    texts += [p.read_bytes().decode("latin-1") for p in (tmp_path / "state").iterdir()]
    assert len(texts) >= 4
    for text in texts:
        assert "K3Y" not in text
        assert "PR0MPT" not in text


async def test_each_request_leaves_one_line(tmp_path):
    """The access log has one line per request with key, model, outcome and times, whatever the outcome."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        await gateway.until(lambda s: bool(s.instances()))
        for number, body in enumerate((b"{}", b'{"model":"x"}', b'{"model":"m","messages":[]}')):
            await http.post(CHAT, content=body, headers={"x-request-id": f"id-{number}"})
        await gateway.wait_for_event("request_finished", times=3)
        lines = [json.loads(x) for x in gateway.log.splitlines() if '"request_finished"' in x]
        assert [(line["request"], line["outcome"]) for line in lines] == [
            ("id-0", "missing_model"),
            ("id-1", "model_not_found"),
            ("id-2", "ok"),
        ]
        assert lines[2]["node"] == "n"
        assert lines[2]["key"] == "anonymous"
        assert lines[2]["reason"] == "only"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules():
    """Promtool accepts the configuration."""
    for command in (("check", "rules", "cortex-alerts.yml"), ("check", "config", "prometheus.yml")):
        done = subprocess.run(
            ["promtool", *command],
            cwd=CONFIG / "prometheus",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
