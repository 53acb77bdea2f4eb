"""The check of files that settings refer to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rigs.lazy_import import trustme

from cortex_cli.referenced_files import FileReport, check_referenced_files
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import load
from cortex_common.config.neuron import NeuronConfig

NODE = '[[neurons]]\nname = "n"\nendpoint = "https://n:9090"\n'


def report_of(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> FileReport:
    """Return the report of a cortex.toml."""
    path = tmp_path / "cortex.toml"
    path.write_text(text)
    return check_referenced_files(load(GatewayConfig, path, {}), environ or {})


def signed(path: Path, days: float) -> Path:
    """Write a certificate with its key that expires in this many days."""
    expiry = datetime.now(UTC) + timedelta(days=days)
    certificate = trustme.CA().issue_cert("n", not_after=expiry)
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    return path


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Switch from root, which can read every file, to another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("key", ["token_file", "ca", "certificate"])
def test_a_missing_file_is_reported_with_its_setting(tmp_path: Path, key: str) -> None:
    """The error of a missing file contains line, setting and file."""
    report = report_of(tmp_path, f'{NODE}{key} = "/nonexistent/file"\n')

    where = f"{tmp_path}/cortex.toml:4: neurons.0.{key}"
    assert report.errors == [f"{where}: file /nonexistent/file does not exist"]


def test_files_of_a_neuron_are_checked(tmp_path: Path) -> None:
    """Token and certificate of a neuron must exist; files that it creates need not."""
    path = tmp_path / "neuron.toml"
    path.write_text(
        f'[neuron]\nstate_dir = "{tmp_path}/new"\ntoken_file = "/nonexistent/token"\n'
        '[tls]\ncertificate = "/nonexistent/cert"\n'
    )
    report = check_referenced_files(load(NeuronConfig, path, {}), {})

    assert [line.split(": ")[1] for line in report.errors] == [
        "neuron.token_file",
        "tls.certificate",
    ]


def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    """A file that the current user can't read is not an error, but reported as skipped."""
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0)
    path = tmp_path / "cortex.toml"
    path.write_text(f'{NODE}token_file = "{token}"\n')
    loaded = load(GatewayConfig, path, {})
    with unprivileged():
        report = check_referenced_files(loaded, {})

    assert (report.errors, report.warnings) == ([], [])
    assert "neurons.0.token_file" in report.skipped[0]


def test_systemd_credentials(tmp_path: Path) -> None:
    """A bare file name is checked if the credentials directory is known, and skipped otherwise."""
    text = f'{NODE}token_file = "beast-token"\n'
    assert report_of(tmp_path, text).errors == []
    assert report_of(tmp_path, text, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).errors != []
    (tmp_path / "beast-token").write_text("secret")
    report = report_of(tmp_path, text, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (report.errors, report.skipped) == ([], [])


def test_mismatched_files_are_an_error(tmp_path: Path) -> None:
    """A key that does not match the certificate and an empty secret are errors."""
    mine, other = signed(tmp_path / "mine.pem", 90), signed(tmp_path / "other.pem", 90)
    (tmp_path / "empty").touch()
    report = report_of(
        tmp_path,
        f'[tls]\ncertificate = "{mine}"\nkey = "{other}"\n{NODE}token_file = "{tmp_path}/empty"\n',
    )

    assert "is empty" in report.errors[0]
    assert report.errors[1].startswith("tls: ")


def test_a_certificate_that_expires_soon_is_a_warning(tmp_path: Path) -> None:
    """The warning contains the setting and the date."""
    mine = signed(tmp_path / "mine.pem", 3)
    report = report_of(tmp_path, f'[tls]\ncertificate = "{mine}"\n')

    assert report.errors == []
    assert report.warnings[0].startswith(f"tls: the certificate in {mine} expires on ")
