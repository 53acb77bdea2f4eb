"""What daemons keep of their logs, and which log a name means."""

from __future__ import annotations

import logging

import pytest
from sample_fleet import busy_fleet

from cortex_cli.logs import LogOf, log_of
from cortex_common.errors import NotFound, UpstreamFailed
from cortex_common.log import event
from cortex_common.log_buffer import KeptLog, log_lines


@pytest.fixture
def log():
    """A logger that no other test shares."""
    made = logging.Logger("test")  # noqa: LOG001 - as said
    made.setLevel(logging.INFO)
    return made


async def pieces(data: bytes, size: int):
    """The bytes in pieces, as a socket may bring them."""
    for at in range(0, len(data), size):
        yield data[at : at + size].decode()


async def test_the_last_lines_come_back_as_they_were_said(log: logging.Logger):
    """Names, levels and facts survive any cut into pieces; a secret of another logger's is not there."""
    kept = KeptLog(besides=("test.requests",))
    log.addHandler(kept)
    for number in range(5):
        event(log, "said", logging.WARNING, number=number, none=None, share=0.123456)
    kept.emit(logging.LogRecord("test.requests", logging.INFO, "", 0, "elsewhere", None, None))
    lines = [line async for line in log_lines(pieces(kept.tail(2), 7))]
    assert [(x.event, x.level, dict(x.facts)) for x in lines] == [
        ("said", "warn", {"number": 3, "share": 0.1235}),
        ("said", "warn", {"number": 4, "share": 0.1235}),
    ]


async def test_what_is_kept_has_a_bound(log: logging.Logger):
    """However much is logged, the oldest lines go and the newest stay; asking for more than there is is no error."""
    kept = KeptLog(most_bytes=2000)
    log.addHandler(kept)
    for number in range(200):
        event(log, "said", number=number)
    lines = [line async for line in log_lines(pieces(kept.tail(10_000), 4096))]
    assert len(kept.tail(10_000)) <= 2000
    assert lines[-1].facts["number"] == 199
    assert kept.tail(0) == b""


async def test_a_reader_that_follows_misses_nothing(log: logging.Logger):
    """First the tail, then what comes, and the end when it is over."""
    kept, over = KeptLog(), []
    log.addHandler(kept)
    event(log, "before")
    reading = kept.follow(10, lambda: bool(over))
    assert b"before" in await anext(reading)
    event(log, "after")
    assert b"after" in await anext(reading)
    over.append(True)
    assert [piece async for piece in reading] == []


async def test_an_exception_is_told_with_its_way(log: logging.Logger):
    """The traceback is in the line."""
    kept = KeptLog()
    log.addHandler(kept)
    try:
        raise ValueError("broken")  # noqa: TRY301 - to have a traceback
    except ValueError:
        log.exception("failed")
    (line,) = [line async for line in log_lines(pieces(kept.tail(1), 100))]
    assert (line.level, "ValueError: broken" in (line.exception or "")) == ("error", True)


async def test_something_else_than_a_log_is_an_error():
    """A proxy's page is not shown as a log."""
    with pytest.raises(UpstreamFailed, match="no log"):
        [line async for line in log_lines(pieces(b"<html>\n", 100))]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gateway", LogOf()),
        ("beast", LogOf(node="beast")),
        ("google/gemma-3-12b", LogOf(model="google/gemma-3-12b")),
        ("beast/google/gemma-3-12b", LogOf("beast", "google/gemma-3-12b", "gemma-1")),
    ],
)
def test_a_name_means_a_log(name: str, meant: LogOf):
    """The gateway, a node, a model, or a model on a node, whatever slashes are in its name."""
    assert log_of(name, busy_fleet()) == meant


def test_a_name_of_nothing_gets_a_hint():
    """The nearest name is offered."""
    with pytest.raises(NotFound) as refused:
        log_of("beest", busy_fleet())
    assert "beast" in refused.value.hints[0]
