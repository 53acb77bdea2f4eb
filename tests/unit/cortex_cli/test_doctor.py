from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from demo_fleet import free_port
from sample_fleet import NOW, busy_fleet, empty_fleet

from cortex_cli.doctor.checks import fleet_checks, host_checks, unreachable_hint
from cortex_cli.doctor.findings import Verdict, summary_line, worst_verdict
from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import UpstreamFailed
from cortex_common.schema.certificates import EXPIRY_WARNING_S, Certificate
from cortex_common.schema.fleet import FleetSnapshot, SettingsView


def results(fleet: FleetSnapshot, version: str = "0.1.0") -> dict[str, tuple[Verdict, str]]:
    """Return the findings of a fleet by check."""
    return {f.check: (f.verdict, f.message) for f in fleet_checks(fleet, version)}


def test_a_healthy_fleet_has_no_warnings():
    """A fleet without problems has only successful checks."""
    fleet = busy_fleet()
    healthy = replace(fleet, nodes=fleet.nodes[:1], models=fleet.models[:2])

    assert worst_verdict(fleet_checks(healthy, "0.1.0")) is Verdict.OK


def test_each_problem_is_found():
    """An unreachable node, a lost device, a cordon and a failed model each have a finding."""
    found = results(busy_fleet())

    assert found["node attic"] == (Verdict.ERROR, "unreachable: connection refused")
    assert found["device mule/2"] == (Verdict.ERROR, "fell off the bus")
    assert found["node mule"] == (Verdict.WARNING, "is cordoned")
    assert found["model microsoft/phi-4"][0] is Verdict.ERROR


def test_every_error_has_a_hint():
    """Every error says what to do about it."""
    findings = fleet_checks(busy_fleet(), "0.1.0")

    assert all(f.hint for f in findings if f.verdict is Verdict.ERROR)


def test_the_hint_for_an_upstream_uses_its_model_list():
    """The hint for an upstream does not mention neurons or /health, which it does not have."""
    fleet = busy_fleet()
    other = replace(fleet.nodes[2], endpoint="http://10.0.0.7:8000", upstream=True, reason=None)
    (hint,) = [
        f.hint
        for f in fleet_checks(replace(fleet, nodes=(other,)), "0.1.0")
        if f.check == "node attic"
    ]

    assert hint.startswith("is the server running? try `curl http://10.0.0.7:8000/v1/models`")


@pytest.mark.parametrize(
    ("reason", "upstream", "hint"),
    [
        ("can't be reached: Connection refused", False, "`systemctl status neuron` on attic"),
        ("can't be reached: timed out", False, "firewall might drop packets to 10.0.0.7"),
        ("can't be reached: [Errno -2] Name or service not known", True, "correct `base_url`"),
        ("this neuron needs its token: see token and token_file", False, "the same token"),
        ("GET /v1/models returned 401: who are you", True, "`key_file` under [[upstreams]]"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] ... self-signed certificate", False, "`ca` under"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] ... Hostname mismatch, certificate is not valid",
            *(False, "a name that the certificate contains"),
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", False, "use http://"),
        (
            "closed the connection: Server disconnected without sending a response.",
            False,
            "https://",
        ),
        ("GET /events returned 404: <html>", False, "another server listens there"),
        ("there is no /events here", False, "another server listens there"),
        (
            "a reason of its own",
            False,
            "is its neuron running? try `curl http://10.0.0.7:9090/health`",
        ),
    ],
)
def test_the_hint_matches_the_reason(reason: str, upstream: bool, hint: str):
    """The hint for an unreachable node depends on the reason."""
    node = replace(
        busy_fleet().nodes[2], endpoint="http://10.0.0.7:9090", upstream=upstream, reason=reason
    )

    assert hint in unreachable_hint(node)


async def test_a_refused_connection_is_reported_as_such():
    """The error distinguishes a refused connection from other connection errors."""
    async with NeuronClient(f"http://127.0.0.1:{free_port()}", who="node x") as client:
        with pytest.raises(UpstreamFailed, match="can't be reached: Connection refused"):
            await client.discovery()


def test_different_versions_are_a_warning():
    """A node with another version than the command is a warning with both versions."""
    verdict, message = results(busy_fleet(), "0.2.0")["versions"]

    assert verdict is Verdict.WARNING
    assert "beast has 0.1.0" in message


def test_a_silent_node_is_a_warning():
    """A node that is up but has sent nothing for a minute is a warning."""
    fleet = replace(busy_fleet(), at=NOW + 60)

    assert any(f.message == "silent for 1m00s" for f in fleet_checks(fleet, "0.1.0"))


def test_a_model_that_no_node_can_run_is_a_warning():
    """A model whose harness no node has is a warning."""
    fleet = busy_fleet()
    odd = replace(fleet.models[0], id="odd", harness="vllm")
    found = results(replace(fleet, models=(odd,)))

    assert found["model odd"] == (Verdict.WARNING, "no node has the harness vllm")


def test_a_gateway_without_nodes_is_an_error():
    """A gateway without nodes is not healthy."""
    assert results(empty_fleet())["nodes"][0] is Verdict.ERROR


def test_the_host_is_checked(tmp_path: Path):
    """The limit of open files and the disk of the host are checked."""
    assert [f.check for f in host_checks(tmp_path)] == ["open files", "disk"]


def test_findings_are_summary_line():
    """The summary counts every finding once."""
    findings = fleet_checks(busy_fleet(), "0.1.0")
    numbers = [int(part.split()[0]) for part in summary_line(findings).split(", ")]

    assert sum(numbers) == len(findings)


def test_certificates():
    """A certificate that expires soon is a warning, an expired or unusable one an error, others are ok."""
    fleet = busy_fleet()
    soon, expired = Certificate("soon.pem", NOW + 86400), Certificate("expired.pem", NOW - 86400)
    node = replace(fleet.nodes[0], certificates=(expired,))
    found = fleet_checks(replace(fleet, at=NOW, nodes=(node,), certificates=(soon,)), "0.1.0")
    named = {f.check: f for f in found if "certificate" in f.check}

    assert named["certificate of the gateway"].verdict is Verdict.WARNING
    assert named[f"certificate of {node.name}"].verdict is Verdict.ERROR
    assert all("without a restart" in f.hint for f in named.values())
    later = Certificate("later.pem", NOW + 2 * EXPIRY_WARNING_S)
    wrong = replace(fleet, at=NOW, certificates=(replace(later, reload_error="no key"),))
    assert results(wrong)["certificate of the gateway"] == (
        Verdict.ERROR,
        "the current content of later.pem is not used: no key",
    )
    well = fleet_checks(replace(fleet, at=NOW, certificates=(later,)), "0.1.0")
    assert [f.verdict for f in well if f.check == "certificates"] == [Verdict.OK]


def test_settings_that_the_gateway_does_not_follow_are_results():
    """Why it refused its files is an error, as it could not start by them; what waits for a restart a warning."""
    settings = SettingsView(NOW - 60, "cortex.toml:3: unknown key\nmore", ("gateway.listen",))
    found = fleet_checks(replace(busy_fleet(), at=NOW, settings=settings), "0.1.0")

    assert [(f.verdict, f.message) for f in found if f.check == "settings"] == [
        (
            Verdict.ERROR,
            "the gateway uses the settings of 1m00s ago: cortex.toml:3: unknown key",
        ),
        (Verdict.WARNING, "changed but not effective yet: gateway.listen"),
    ]
