from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from demo_fleet import free_port
from sample_fleet import NOW, busy_fleet, empty_fleet

from cortex_cli.doctor.checks import Verdict, counted, fleet_checks, host_checks, way_to, worst
from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import UpstreamFailed
from cortex_common.schema.certificates import EXPIRY_WARNING_S, Certificate
from cortex_common.schema.fleet import FleetSnapshot, SettingsView


def told(fleet: FleetSnapshot, version: str = "0.1.0") -> dict[str, tuple[Verdict, str]]:
    """The checks of a fleet by their names; the last of a name wins."""
    return {f.check: (f.verdict, f.about) for f in fleet_checks(fleet, version)}


def test_a_sound_fleet_has_only_ok():
    """A fleet without trouble gets no warning."""
    fleet = busy_fleet()
    sound = replace(fleet, nodes=fleet.nodes[:1], models=fleet.models[:2])

    assert worst(fleet_checks(sound, "0.1.0")) is Verdict.OK


def test_each_trouble_is_found():
    """An unreachable node, a lost card, a cordon and a failed model are found, each in its place."""
    found = told(busy_fleet())

    assert found["node attic"] == (Verdict.ERROR, "unreachable: connection refused")
    assert found["device mule/2"] == (Verdict.ERROR, "fell off the bus")
    assert found["node mule"] == (Verdict.WARNING, "is cordoned")
    assert found["model microsoft/phi-4"][0] is Verdict.ERROR


def test_every_trouble_has_a_way_out():
    """No error is told without what to do about it."""
    findings = fleet_checks(busy_fleet(), "0.1.0")

    assert all(f.hint for f in findings if f.verdict is Verdict.ERROR)


def test_a_server_of_others_is_asked_by_what_it_has():
    """It has no neuron, and many have no /health."""
    fleet = busy_fleet()
    other = replace(fleet.nodes[2], endpoint="http://10.0.0.7:8000", upstream=True, reason=None)
    (hint,) = [
        f.hint
        for f in fleet_checks(replace(fleet, nodes=(other,)), "0.1.0")
        if f.check == "node attic"
    ]

    assert hint.startswith("is it running? `curl http://10.0.0.7:8000/v1/models`")


@pytest.mark.parametrize(
    ("reason", "upstream", "hint"),
    [
        ("can't be reached: Connection refused", False, "`systemctl status neuron` on attic"),
        ("can't be reached: timed out", False, "firewall may drop what goes to 10.0.0.7"),
        ("can't be reached: [Errno -2] Name or service not known", True, "mend `base_url`"),
        ("this neuron needs its token: see token and token_file", False, "the same text"),
        ("GET /v1/models returned 401: who are you", True, "`key_file` under [[upstreams]]"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] ... self-signed certificate", False, "`ca` under"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] ... Hostname mismatch, certificate is not valid",
            *(False, "a name that the certificate has"),
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", False, "begins with http://"),
        (
            "closed the connection: Server disconnected without sending a response.",
            False,
            "https://",
        ),
        ("GET /events returned 404: <html>", False, "something else listens there"),
        ("there is no /events here", False, "something else listens there"),
        ("a reason of its own", False, "is its neuron running? `curl http://10.0.0.7:9090/health`"),
    ],
)
def test_the_way_out_fits_the_reason(reason: str, upstream: bool, hint: str):
    """Whoever has the reason needs no general advice: a certificate is mended elsewhere than a token."""
    node = replace(
        busy_fleet().nodes[2], endpoint="http://10.0.0.7:9090", upstream=upstream, reason=reason
    )

    assert hint in way_to(node)


async def test_a_refused_connection_is_called_so():
    """Who is told what failed knows whether nobody listens or no way leads there."""
    async with NeuronClient(f"http://127.0.0.1:{free_port()}", who="node x") as client:
        with pytest.raises(UpstreamFailed, match="can't be reached: Connection refused"):
            await client.discovery()


def test_versions_that_differ_are_named():
    """A node with another version than the command's is a warning that names it."""
    verdict, about = told(busy_fleet(), "0.2.0")["versions"]

    assert verdict is Verdict.WARNING
    assert "beast has 0.1.0" in about


def test_a_silent_node_is_a_warning():
    """A node that is up but has not been heard of for a minute is told."""
    fleet = replace(busy_fleet(), at=NOW + 60)

    assert any(f.about == "silent for 1m00s" for f in fleet_checks(fleet, "0.1.0"))


def test_a_model_that_no_node_can_run_is_a_warning():
    """A profile whose harness no node has is told before anybody asks for it."""
    fleet = busy_fleet()
    odd = replace(fleet.models[0], id="odd", harness="vllm")
    found = told(replace(fleet, models=(odd,)))

    assert found["model odd"] == (Verdict.WARNING, "no node has the harness vllm")


def test_a_gateway_without_nodes_is_an_error():
    """A gateway that knows nobody is broken, not healthy."""
    assert told(empty_fleet())["nodes"][0] is Verdict.ERROR


def test_the_host_is_checked(tmp_path: Path):
    """Open files and disk are checked on the host itself."""
    assert [f.check for f in host_checks(tmp_path)] == ["open files", "disk"]


def test_findings_are_counted():
    """The last line counts every finding once."""
    findings = fleet_checks(busy_fleet(), "0.1.0")
    numbers = [int(part.split()[0]) for part in counted(findings).split(", ")]

    assert sum(numbers) == len(findings)


def test_a_certificate_near_its_end_is_a_warning_and_one_past_it_an_error():
    """Of the gateway or of a node, with what to do; one with time is counted among those that are well."""
    fleet = busy_fleet()
    soon, over = Certificate("soon.pem", NOW + 86400), Certificate("over.pem", NOW - 86400)
    node = replace(fleet.nodes[0], certificates=(over,))
    found = fleet_checks(replace(fleet, at=NOW, nodes=(node,), certificates=(soon,)), "0.1.0")
    named = {f.check: f for f in found if "certificate" in f.check}

    assert named["certificate of the gateway"].verdict is Verdict.WARNING
    assert named[f"certificate of {node.name}"].verdict is Verdict.ERROR
    assert all("without a restart" in f.hint for f in named.values())
    later = Certificate("later.pem", NOW + 2 * EXPIRY_WARNING_S)
    wrong = replace(fleet, at=NOW, certificates=(replace(later, reload_error="no key"),))
    assert told(wrong)["certificate of the gateway"] == (
        Verdict.ERROR,
        "the current content of later.pem is not used: no key",
    )
    well = fleet_checks(replace(fleet, at=NOW, certificates=(later,)), "0.1.0")
    assert [f.verdict for f in well if f.check == "certificates"] == [Verdict.OK]


def test_settings_that_the_gateway_does_not_follow_are_told():
    """Why it refused its files is an error, as it could not start by them; what waits for a restart a warning."""
    settings = SettingsView(NOW - 60, "cortex.toml:3: unknown key\nmore", ("gateway.listen",))
    found = fleet_checks(replace(busy_fleet(), at=NOW, settings=settings), "0.1.0")

    assert [(f.verdict, f.about) for f in found if f.check == "settings"] == [
        (
            Verdict.ERROR,
            "the gateway runs by what it read 1m00s ago: cortex.toml:3: unknown key",
        ),
        (Verdict.WARNING, "changed, and not in force yet: gateway.listen"),
    ]
