"""Expiry of certificates, read from files of a real certificate authority."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs.lazy_import import trustme

from cortex_common.clock import ManualClock
from cortex_common.net.tls import read_certificates, report_expiring_certificates
from cortex_common.schema.certificates import EXPIRY_WARNING_S, Certificate

EXPIRIES = st.integers(1_800_000_000, 4_700_000_000).map(partial(datetime.fromtimestamp, tz=UTC))


@given(expiries=st.lists(EXPIRIES, min_size=1, max_size=2))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_expiry_is_read_from_file(tmp_path: Path, expiries: list[datetime]) -> None:
    """The first certificate of a file is the daemon's own; of several authorities, the latest expiry counts."""
    authority = trustme.CA()
    file = tmp_path / "chain.pem"
    issued = [authority.issue_cert("127.0.0.1", not_after=expiry) for expiry in expiries]
    file.write_bytes(b"# comment\n" + b"".join(c.cert_chain_pems[0].bytes() for c in issued))

    assert read_certificates(file, None) == (Certificate(str(file), expiries[0].timestamp()),)
    assert read_certificates(None, file) == (Certificate(str(file), max(expiries).timestamp()),)


def test_file_without_certificates_yields_nothing(tmp_path: Path) -> None:
    """An unusable file is reported by the code that loads it."""
    file = tmp_path / "cert.pem"
    for content in (
        None,
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
    ):
        if content is not None:
            file.write_text(content)
        assert read_certificates(file, file) == ()


def test_all_pem_labels_are_recognized(tmp_path: Path) -> None:
    """OpenSSL accepts two more labels, so the next certificate of a chain must not be mistaken for the first."""
    authority, expiry = trustme.CA(), datetime(2031, 2, 3, tzinfo=UTC)
    own = authority.issue_cert("127.0.0.1", not_after=expiry).cert_chain_pems[0].bytes()
    root, file = authority.cert_pem.bytes(), tmp_path / "chain.pem"
    for label in (b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"):
        file.write_bytes((own.replace(b"CERTIFICATE", label) + root).replace(b"\n", b"\r\n"))
        assert read_certificates(file, None) == (Certificate(str(file), expiry.timestamp()),)


def test_malformed_certificate_is_skipped(tmp_path: Path) -> None:
    """A malformed authority hides no other; if the first certificate of a chain is malformed, none is returned."""
    file, expiry = tmp_path / "cert.pem", datetime(2031, 2, 3, tzinfo=UTC)
    valid = trustme.CA().issue_cert("127.0.0.1", not_after=expiry).cert_chain_pems[0].bytes()
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" + valid)
    assert read_certificates(file, file) == (Certificate(str(file), expiry.timestamp()),)
    assert read_certificates(file, None) == ()


def test_certificate_is_a_problem_14_days_before_expiry() -> None:
    """Not a second earlier; after its expiry the text changes."""
    certificate = Certificate("cert.pem", 1_800_000_000.0)

    assert certificate.problem(certificate.expires_at - EXPIRY_WARNING_S) is None
    assert certificate.problem(certificate.expires_at - EXPIRY_WARNING_S + 1) == (
        "the certificate in cert.pem expires on 2027-01-15 08:00+00:00"
    )
    assert certificate.problem(certificate.expires_at) == (
        "the certificate in cert.pem expired on 2027-01-15 08:00+00:00"
    )


async def test_expiring_certificates_are_reported_immediately() -> None:
    """Expired ones as errors, those that expire soon as warnings, others not at all."""
    clock = ManualClock()
    now = clock.unix()
    certificates = (
        Certificate("expired", now - 1),
        Certificate("soon", now + 86400),
        Certificate("later", now + 10 * EXPIRY_WARNING_S),
    )
    events: asyncio.Queue[tuple[str, int, object]] = asyncio.Queue()

    def report(name: str, level: int, **fields: object) -> None:
        events.put_nowait((name, level, fields["file"]))

    task = asyncio.create_task(report_expiring_certificates(lambda: certificates, clock, report))
    assert await events.get() == ("certificate_expired", logging.ERROR, "expired")
    assert await events.get() == ("certificate_expiring", logging.WARNING, "soon")
    assert events.empty()
    task.cancel()
