"""HTTPS on both servers, tokens between them, with certificates made in the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rigs import forkserver
from rigs.engine import scripted_engine
from rigs.fleet import Service, free_port, tiny_models
from rigs.gateway import gateway_process, neuron_table
from rigs.lazy_import import trustme
from rigs.neuron import scripted_neuron

from cortex_common.client.neuron import NeuronClient
from cortex_common.config.access import TlsSection
from cortex_common.errors import AuthenticationFailed, ConfigError, CortexError
from cortex_common.net.runtime_dir import read_neuron_token
from cortex_common.net.tls import ServerTls, client_context
from cortex_server.gateway import listening

CHAT = "/v1/chat/completions"


def certificate(ca: trustme.CA, path: Path, *names: str, ends: datetime | None = None) -> Path:
    """Return a PEM file with a certificate for the names and its key."""
    new = path.with_suffix(".new")
    made = ca.issue_cert(*(names or ("127.0.0.1",)), not_after=ends)
    new.write_bytes(made.private_key_and_cert_chain_pem.bytes())
    new.replace(path)
    return path


def authority(ca: trustme.CA, path: Path) -> Path:
    """Return a PEM file with the authority's certificate."""
    ca.cert_pem.write_to_path(path)
    return path


async def shown_by(port: int, context: ssl.SSLContext) -> int:
    """Return the serial number of a server's certificate."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return int(found, 16)


async def test_the_gateway_serves_https_for_engines_on_http(tmp_path):
    """A request over HTTPS is answered; one without TLS is not."""
    ca = trustme.CA()
    pem = certificate(ca, tmp_path / "cert.pem")
    trusted = client_context(authority(ca, tmp_path / "ca.pem"))
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(
            tmp_path, neuron_table("n", neuron.url), f'[tls]\ncertificate = "{pem}"\n'
        ) as gateway,
        httpx.AsyncClient(base_url=f"https://127.0.0.1:{gateway.port}", verify=trusted) as http,
    ):
        await gateway.wait_for_event("node_up")
        body = {"model": "m", "messages": [], "stream": True}
        answer = await http.post(CHAT, json=body)
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        metrics = f"https://127.0.0.1:{gateway.metrics_port}/metrics"
        assert (await http.get(metrics)).status_code == 200
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.HTTPError):
                await plain.get(f"http://127.0.0.1:{gateway.port}/health")


async def test_a_nodes_authority_and_token_are_read_again_when_their_files_change(tmp_path):
    """Replaced certificates are used without a restart; the log contains the files."""
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server)
    authorities, token = authority(trustme.CA(), tmp_path / "ca.pem"), tmp_path / "token"
    token.write_text("old")
    async with scripted_neuron({}, token="new", tls=server) as neuron:
        table = neuron_table("n", neuron.url, ca=str(authorities), token_file=str(token))
        async with gateway_process(tmp_path, table) as gateway:
            await gateway.until(lambda s: "CERTIFICATE_VERIFY" in (s.nodes[0].reason or ""))
            new = authority(ca, tmp_path / "ca.new")
            new.replace(authorities)
            await gateway.until(lambda s: "401" in (s.nodes[0].reason or ""))
            token.write_text("new")
            await gateway.until(lambda s: s.nodes[0].state == "up")
            assert (await gateway.wait_for_event("config_reloaded"))["changed"] == str(token)


async def test_a_client_certificate_is_required(tmp_path):
    """With client_ca, clients without a certificate of that authority are refused."""
    ca, other = trustme.CA(), trustme.CA()
    ca_pem = authority(ca, tmp_path / "ca.pem")
    pem = certificate(ca, tmp_path / "cert.pem")
    mine = certificate(ca, tmp_path / "mine.pem", "operator@example.org")
    theirs = certificate(other, tmp_path / "theirs.pem", "operator@example.org")
    tls = f'[tls]\ncertificate = "{pem}"\nclient_ca = "{ca_pem}"\n'
    async with gateway_process(tmp_path, tls) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/health"
        async with httpx.AsyncClient(verify=client_context(ca_pem, mine)) as http:
            assert (await http.get(url)).status_code == 200
        for wrong in (client_context(ca_pem), client_context(ca_pem, theirs)):
            async with httpx.AsyncClient(verify=wrong) as http:
                with pytest.raises(httpx.HTTPError):
                    await http.get(url)


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path):
    """New connections see the new file; a wrong file in between changes nothing."""
    ca = trustme.CA()
    pem = certificate(ca, tmp_path / "cert.pem")
    trusted = client_context(authority(ca, tmp_path / "ca.pem"))
    tls = ServerTls(TlsSection(certificate=pem))
    with listening("127.0.0.1:0", "listen") as sock:
        port = sock.getsockname()[1]
        server = await asyncio.start_server(lambda _r, w: w.close(), sock=sock, ssl=tls.context)
        async with server:
            first = await shown_by(port, trusted)
            pem.write_text("nonsense")
            assert not tls.refresh()
            assert await shown_by(port, trusted) == first
            assert [bool(c.reload_error) for c in tls.certificates] == [True]
            certificate(ca, pem)
            assert tls.refresh()
            assert [c.reload_error for c in tls.certificates] == [None]
            assert await shown_by(port, trusted) != first
            assert not tls.refresh()


async def test_both_daemons_tell_that_their_certificates_end(tmp_path):
    """Days before, in the log, the metrics and to `cortex doctor`; the authority of nodes is among them."""
    ca = trustme.CA()
    ca_pem = authority(ca, tmp_path / "ca.pem")
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    mine = certificate(ca, tmp_path / "gateway.pem", ends=ends)
    theirs = certificate(ca, tmp_path / "neuron.pem", ends=ends)
    port = free_port()
    (tmp_path / "neuron.toml").write_text(
        f'[neuron]\nlisten = "127.0.0.1:{port}"\nstate_dir = "{tmp_path}/neuron"\n'
        f'[tls]\ncertificate = "{theirs}"\n'
    )
    url = f"https://127.0.0.1:{port}"
    arguments = ["serve", "neuron", "--config", str(tmp_path / "neuron.toml")]
    neuron = Service(arguments, url, tmp_path / "neuron.log")
    neuron.start()
    try:
        tables = (neuron_table("n", url, ca=str(ca_pem)), f'[tls]\ncertificate = "{mine}"\n')
        trusted = client_context(ca_pem)
        async with (
            gateway_process(tmp_path, *tables) as gateway,
            httpx.AsyncClient(verify=trusted) as http,
        ):
            assert (await gateway.wait_for_event("certificate_expiring"))["file"] == str(mine)
            await gateway.wait_for_event("node_up")
            exposition = (await http.get(f"https://127.0.0.1:{gateway.metrics_port}/metrics")).text
            token = read_neuron_token(url, os.environ)
            headers = {"authorization": f"Bearer {token}"}
            of_node = (await http.get(f"{url}/metrics", headers=headers)).text
            doctor = await asyncio.to_thread(
                forkserver.run,
                ["doctor"],
                environ={
                    "PATH": os.environ["PATH"],
                    "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"],
                    "CORTEX_GATEWAY_URL": f"https://127.0.0.1:{gateway.port}",
                    "SSL_CERT_FILE": str(ca_pem),
                },
            )
    finally:
        await asyncio.to_thread(neuron.end)

    name, at = "certificate_expiry_timestamp_seconds", ends.timestamp()
    found = {
        (s.labels["node"], s.labels["file"]): s.value
        for family in text_string_to_metric_families(exposition)
        for s in family.samples
        if s.name == f"cortex_{name}"
    }
    assert (found["none", str(mine)], found["n", str(theirs)]) == (at, at)
    assert ("none", str(ca_pem)) in found
    assert f'cortex_neuron_{name}{{file="{theirs}"}}' in of_node
    assert "certificate_expiring" in (tmp_path / "neuron.log").read_text()
    assert f"{mine} expires on" in doctor.stdout
    assert f"{theirs} expires on" in doctor.stdout


@pytest.mark.parametrize("what", ["missing", "key of another"])
def test_wrong_files_are_named(tmp_path, what):
    """What is wrong with the files is a configuration error that names them."""
    ca = trustme.CA()
    pem = tmp_path / "cert.pem"
    section = TlsSection(certificate=pem)
    if what == "key of another":
        ca.issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(pem)
        key = tmp_path / "key.pem"
        ca.issue_cert("127.0.0.1").private_key_pem.write_to_path(key)
        section = TlsSection(certificate=pem, key=key)
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        ServerTls(section)


async def test_the_gateway_shows_a_node_its_token(tmp_path):
    """With the token in a file of systemd's credentials the gateway gets in; without it, it does not."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "beast-token").write_text("s3cret-of-the-node\n")
    async with scripted_neuron({}, token="s3cret-of-the-node") as neuron:
        async with gateway_process(
            tmp_path,
            neuron_table("beast", neuron.url, token_file="beast-token"),
            environ={"CREDENTIALS_DIRECTORY": str(credentials)},
        ) as gateway:
            await gateway.until(lambda s: s.nodes[0].state == "up")
            assert "s3cret" not in gateway.log
        async with gateway_process(credentials, neuron_table("beast", neuron.url)) as gateway:
            await gateway.until(lambda s: s.nodes[0].state == "unreachable")


async def test_requests_reach_the_engine_of_a_guarded_node(tmp_path):
    """Gateway to neuron over TLS with a token, through its relay to a real engine and back; others are refused."""
    ca = trustme.CA()
    ca_pem = authority(ca, tmp_path / "ca.pem")
    pem = certificate(ca, tmp_path / "neuron.pem")
    (tmp_path / "token").write_text("s3cret-of-the-node")
    port, weights = free_port(), tiny_models()["tiny/ada"]
    (tmp_path / "neuron.toml").write_text(
        f'[neuron]\nlisten = "0.0.0.0:{port}"\nstate_dir = "{tmp_path}/neuron"\n'
        f'token_file = "{tmp_path}/token"\n[tls]\ncertificate = "{pem}"\n'
        "[cpu]\noffer = true\n[[harnesses]]\nname = 'embedded'\n"
        f"port_range = [{free_port()}, 65535]\n"
    )
    url = f"https://127.0.0.1:{port}"
    neuron = Service(
        ["serve", "neuron", "--config", str(tmp_path / "neuron.toml")], url, tmp_path / "neuron.log"
    )
    neuron.start()
    try:
        model = (
            f'[[models]]\nid = "tiny"\nharness = "embedded"\nvram_mb = 256\nsource = "{weights}"\n'
        )
        entry = neuron_table("n", url, token_file=f"{tmp_path}/token", ca=str(ca_pem))
        async with (
            gateway_process(tmp_path, entry, models=model) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
        ):
            await gateway.until(lambda s: s.nodes[0].state == "up")
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
            answer = await http.post(CHAT, json=body | {"max_tokens": 3})
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"]
        tls = client_context(ca_pem)
        async with NeuronClient(url, who="the node", tls=tls, token="wrong") as client:
            with pytest.raises(AuthenticationFailed):
                await client.models()
        async with NeuronClient(url, who="the node", token="s3cret-of-the-node") as client:
            with pytest.raises(CortexError, match="certificate"):
                await client.models()
        assert "s3cret" not in (tmp_path / "neuron.log").read_text() + gateway.log
    finally:
        await asyncio.to_thread(neuron.end)


async def test_the_command_trusts_the_authority_that_it_is_given(tmp_path):
    """With SSL_CERT_FILE its commands and its requests for answers speak HTTPS; without, the hint names it."""
    ca = trustme.CA()
    pem = certificate(ca, tmp_path / "cert.pem")
    trusted = {"SSL_CERT_FILE": str(authority(ca, tmp_path / "ca.pem"))}
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(
            tmp_path, neuron_table("n", neuron.url), f'[tls]\ncertificate = "{pem}"\n'
        ) as gateway,
    ):
        url = f"https://127.0.0.1:{gateway.port}"

        async def cortex(*arguments: str, environ: dict[str, str]) -> tuple[int, str, str]:
            clean = {name: os.environ[name] for name in ("PATH", "XDG_RUNTIME_DIR")} | {
                "CORTEX_GATEWAY_URL": url
            }
            done = await asyncio.to_thread(forkserver.run, arguments, environ=clean | environ)
            return done.returncode, done.stdout, done.stderr

        async with asyncio.timeout(60):
            while "ready" not in (await cortex("models", "ls", environ=trusted))[1]:
                pass
        answer = await cortex("chat", "m", "hello", environ=trusted)
        # With a key, the command uses the gateway's address instead of its operator socket.
        key = {"CORTEX_API_KEY": "key"}
        refused = await cortex("status", environ=key)
        plain = await cortex("status", environ=key | {"CORTEX_GATEWAY_URL": gateway.url})

    assert answer[0] == 0, answer
    assert (refused[0], "SSL_CERT_FILE" in refused[2]) == (5, True)
    assert (plain[0], "https://" in plain[2]) == (5, True)
