"""The log buffer of the daemons, and the names of logs in `cortex logs`."""

from __future__ import annotations

import logging

import pytest
from sample_fleet import busy_fleet

from cortex_cli.logs import LogSource, log_source
from cortex_common.errors import NotFound, UpstreamFailed
from cortex_common.log import event
from cortex_common.log_buffer import LogBuffer, parse_log_lines


@pytest.fixture
def log():
    """Return a logger that is not shared with other tests."""
    logger = logging.Logger("test")  # noqa: LOG001 - not shared
    logger.setLevel(logging.INFO)
    return logger


async def split(data: bytes, size: int):
    """Yield the text in chunks of a size, as a socket could return it."""
    for at in range(0, len(data), size):
        yield data[at : at + size].decode()


async def test_tail_returns_the_last_lines(log: logging.Logger):
    """Events, levels and fields survive any chunking; lines of excluded loggers are missing."""
    buffer = LogBuffer(exclude=("test.requests",))
    log.addHandler(buffer)
    for number in range(5):
        event(log, "logged", logging.WARNING, number=number, none=None, share=0.123456)
    buffer.emit(logging.LogRecord("test.requests", logging.INFO, "", 0, "elsewhere", None, None))
    lines = [line async for line in parse_log_lines(split(buffer.tail(2), 7))]
    assert [(x.event, x.level, dict(x.fields)) for x in lines] == [
        ("logged", "warn", {"number": 3, "share": 0.1235}),
        ("logged", "warn", {"number": 4, "share": 0.1235}),
    ]


async def test_buffer_is_bounded(log: logging.Logger):
    """The oldest lines are dropped; asking for more lines than there are is not an error."""
    buffer = LogBuffer(max_bytes=2000)
    log.addHandler(buffer)
    for number in range(200):
        event(log, "logged", number=number)
    lines = [line async for line in parse_log_lines(split(buffer.tail(10_000), 4096))]
    assert len(buffer.tail(10_000)) <= 2000
    assert lines[-1].fields["number"] == 199
    assert buffer.tail(0) == b""


async def test_follower_misses_no_line(log: logging.Logger):
    """It gets the tail, then new lines, and ends when stopped."""
    buffer, stopped = LogBuffer(), []
    log.addHandler(buffer)
    event(log, "before")
    follower = buffer.follow(10, lambda: bool(stopped))
    assert b"before" in await anext(follower)
    event(log, "after")
    assert b"after" in await anext(follower)
    stopped.append(True)
    assert [chunk async for chunk in follower] == []


async def test_exceptions_have_a_traceback(log: logging.Logger):
    """The traceback is part of the line."""
    buffer = LogBuffer()
    log.addHandler(buffer)
    try:
        raise ValueError("broken")  # noqa: TRY301 - to have a traceback
    except ValueError:
        log.exception("failed")
    (line,) = [line async for line in parse_log_lines(split(buffer.tail(1), 100))]
    assert (line.level, "ValueError: broken" in (line.exception or "")) == ("error", True)


async def test_response_that_is_not_a_log_is_an_error():
    """The HTML page of a proxy is not shown as a log."""
    with pytest.raises(UpstreamFailed, match="not a log"):
        [line async for line in parse_log_lines(split(b"<html>\n", 100))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gateway", LogSource()),
        ("beast", LogSource(node="beast")),
        ("google/gemma-3-12b", LogSource(model="google/gemma-3-12b")),
        ("beast/google/gemma-3-12b", LogSource("beast", "google/gemma-3-12b", "gemma-1")),
    ],
)
def test_name_identifies_a_log(name: str, expected: LogSource):
    """It can be the gateway, a node, a model, or a model on a node; model names can contain slashes."""
    assert log_source(name, busy_fleet()) == expected


def test_unknown_log_name_gets_a_hint():
    """The closest name is suggested."""
    with pytest.raises(NotFound) as error:
        log_source("beest", busy_fleet())
    assert "beast" in error.value.hints[0]
