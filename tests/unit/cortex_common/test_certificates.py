"""When certificates end, read from the files of a real authority."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs.late import trustme

from cortex_common.clock import ManualClock
from cortex_common.net.tls import SOON_S, Certificate, in_use, tell_ends

ENDS = st.integers(1_800_000_000, 4_700_000_000).map(partial(datetime.fromtimestamp, tz=UTC))


@given(ends=st.lists(ENDS, min_size=1, max_size=2))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_end_is_the_one_that_was_written(tmp_path: Path, ends: list[datetime]) -> None:
    """A file's own certificate is the first in it; of authorities the last to end counts."""
    authority = trustme.CA()
    file = tmp_path / "chain.pem"
    made = [authority.issue_cert("127.0.0.1", not_after=end) for end in ends]
    file.write_bytes(b"# a remark\n" + b"".join(c.cert_chain_pems[0].bytes() for c in made))

    assert in_use(file, None) == (Certificate(str(file), ends[0].timestamp()),)
    assert in_use(None, file) == (Certificate(str(file), max(ends).timestamp()),)


def test_a_file_that_holds_none_tells_nothing(tmp_path: Path) -> None:
    """Whoever is to use it says what is wrong."""
    file = tmp_path / "cert.pem"
    for content in (
        None,
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
    ):
        if content is not None:
            file.write_text(content)
        assert in_use(file, file) == ()


def test_each_form_of_a_certificate_is_read(tmp_path: Path) -> None:
    """OpenSSL takes two more names for one, so the next of a chain is not taken for the first."""
    authority, end = trustme.CA(), datetime(2031, 2, 3, tzinfo=UTC)
    mine = authority.issue_cert("127.0.0.1", not_after=end).cert_chain_pems[0].bytes()
    root, file = authority.cert_pem.bytes(), tmp_path / "chain.pem"
    for name in (b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"):
        file.write_bytes((mine.replace(b"CERTIFICATE", name) + root).replace(b"\n", b"\r\n"))
        assert in_use(file, None) == (Certificate(str(file), end.timestamp()),)


def test_an_odd_certificate_hides_no_other(tmp_path: Path) -> None:
    """Of authorities; of a chain whose first is odd, nothing is told rather than another's end."""
    file, end = tmp_path / "cert.pem", datetime(2031, 2, 3, tzinfo=UTC)
    made = trustme.CA().issue_cert("127.0.0.1", not_after=end).cert_chain_pems[0].bytes()
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" + made)
    assert in_use(file, file) == (Certificate(str(file), end.timestamp()),)
    assert in_use(file, None) == ()


def test_two_weeks_before_its_end_it_is_trouble() -> None:
    """Not a second earlier; afterwards it is said to have ended."""
    certificate = Certificate("cert.pem", 1_800_000_000.0)

    assert certificate.trouble(certificate.ends_at - SOON_S) is None
    assert certificate.trouble(certificate.ends_at - SOON_S + 1) == (
        "the certificate in cert.pem ends on 2027-01-15 08:00+00:00"
    )
    assert certificate.trouble(certificate.ends_at) == (
        "the certificate in cert.pem ended on 2027-01-15 08:00+00:00"
    )


async def test_what_ends_soon_is_told_at_once() -> None:
    """As an event, an error once it is over; what has time is not told."""
    clock = ManualClock()
    now = clock.unix()
    certificates = (
        Certificate("over", now - 1),
        Certificate("soon", now + 86400),
        Certificate("later", now + 10 * SOON_S),
    )
    told: asyncio.Queue[tuple[str, int, object]] = asyncio.Queue()

    def tell(name: str, level: int, **facts: object) -> None:
        told.put_nowait((name, level, facts["file"]))

    task = asyncio.create_task(tell_ends(lambda: certificates, clock, tell))
    assert await told.get() == ("certificate_ended", logging.ERROR, "over")
    assert await told.get() == ("certificate_ends", logging.WARNING, "soon")
    assert told.empty()
    task.cancel()
