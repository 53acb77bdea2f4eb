"""The files that settings name, looked at before a daemon is to start by them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rigs.lazy_import import trustme

from cortex_cli.referenced_files import Looked, look
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import load
from cortex_common.config.neuron import NeuronConfig

NODE = '[[neurons]]\nname = "n"\nendpoint = "https://n:9090"\n'


def looked(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Looked:
    """What is found of a cortex.toml."""
    path = tmp_path / "cortex.toml"
    path.write_text(text)
    return look(load(GatewayConfig, path, {}), environ or {})


def signed(path: Path, days: float) -> Path:
    """A certificate with its key that ends in so many days."""
    ends = datetime.now(UTC) + timedelta(days=days)
    made = trustme.CA().issue_cert("n", not_after=ends)
    made.private_key_and_cert_chain_pem.write_to_path(path)
    return path


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything, so be somebody else."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("key", ["token_file", "ca", "certificate"])
def test_a_file_that_is_missing_is_named_with_its_setting(tmp_path: Path, key: str) -> None:
    """The gateway would not start; line, setting and file are told."""
    found = looked(tmp_path, f'{NODE}{key} = "/nonexistent/file"\n')

    where = f"{tmp_path}/cortex.toml:4: neurons.0.{key}"
    assert found.wrong == [f"{where}: there is no file /nonexistent/file"]


def test_a_neurons_files_are_looked_at_too(tmp_path: Path) -> None:
    """Its token and its certificate; what it makes itself need not be there."""
    path = tmp_path / "neuron.toml"
    path.write_text(
        f'[neuron]\nstate_dir = "{tmp_path}/new"\ntoken_file = "/nonexistent/token"\n'
        '[tls]\ncertificate = "/nonexistent/cert"\n'
    )
    found = look(load(NeuronConfig, path, {}), {})

    assert [line.split(": ")[1] for line in found.wrong] == ["neuron.token_file", "tls.certificate"]


def test_what_only_the_service_may_read_is_no_error(tmp_path: Path) -> None:
    """It is said that it was left out."""
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0)
    path = tmp_path / "cortex.toml"
    path.write_text(f'{NODE}token_file = "{token}"\n')
    loaded = load(GatewayConfig, path, {})
    with nobody():
        found = look(loaded, {})

    assert (found.wrong, found.doubtful) == ([], [])
    assert "neurons.0.token_file" in found.unseen[0]


def test_credentials_of_systemd_are_seen_by_the_service_alone(tmp_path: Path) -> None:
    """A bare name is looked up there where they are known, and left out elsewhere."""
    text = f'{NODE}token_file = "beast-token"\n'
    assert looked(tmp_path, text).wrong == []
    assert looked(tmp_path, text, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).wrong != []
    (tmp_path / "beast-token").write_text("secret")
    found = looked(tmp_path, text, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (found.wrong, found.unseen) == ([], [])


def test_files_that_do_not_fit_each_other_are_an_error(tmp_path: Path) -> None:
    """A key of another certificate, and a secret that is empty, are there and no use."""
    mine, other = signed(tmp_path / "mine.pem", 90), signed(tmp_path / "other.pem", 90)
    (tmp_path / "empty").touch()
    found = looked(
        tmp_path,
        f'[tls]\ncertificate = "{mine}"\nkey = "{other}"\n{NODE}token_file = "{tmp_path}/empty"\n',
    )

    assert "is empty" in found.wrong[0]
    assert found.wrong[1].startswith("tls: ")


def test_a_certificate_that_ends_soon_is_doubtful(tmp_path: Path) -> None:
    """Its setting is told with its date."""
    mine = signed(tmp_path / "mine.pem", 3)
    found = looked(tmp_path, f'[tls]\ncertificate = "{mine}"\n')

    assert found.wrong == []
    assert found.doubtful[0].startswith(f"tls: the certificate in {mine} expires on ")
