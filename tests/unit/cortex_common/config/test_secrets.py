from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from cortex_common.config.secrets import read_secret
from cortex_common.errors import ConfigError
from cortex_common.log import _Console, event
from cortex_server.auth.usage import UsageCounter
from cortex_server.metrics.exposition import error_side


def test_a_secret_comes_from_its_file_without_the_newline(tmp_path):
    """Editors end files with a newline; secrets do not."""
    (tmp_path / "t").write_text(" s3cret \n")
    assert read_secret(None, tmp_path / "t", {}) == "s3cret"
    assert read_secret("given", tmp_path / "t", {}) == "given"
    assert read_secret(None, None, {}) is None


def test_a_bare_name_is_looked_up_among_credentials(tmp_path):
    """What systemd hands over in a directory is found by name; a path stays a path."""
    (tmp_path / "t").write_text("s3cret")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_secret(None, Path("t"), environ) == "s3cret"
    with pytest.raises(ConfigError, match="other/t"):
        read_secret(None, Path("other/t"), environ)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_useless_file_of_a_secret_is_an_error_that_names_it(tmp_path, content):
    """Empty or no text: the file is named, its content is not."""
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path / "t")):
        read_secret(None, tmp_path / "t", {})


def test_log_lines_do_not_act_on_terminals():
    """Escape sequences and line breaks in what others wrote are shown, not obeyed."""
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(_Console())
    log = logging.Logger("test")  # noqa: LOG001 - one that no other test shares
    log.addHandler(handler)
    event(log, "engine_said", text="\x1b[2Jgone\r\nevent=forged \x9b31m", plain="ok")
    line = sink.getvalue()
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert "plain=ok" in line


def test_usage_that_could_not_be_written_is_not_lost():
    """What is put back adds to what was counted meanwhile."""
    usage = UsageCounter()
    usage.count("k", "m", 1, 2, failed=False)
    taken = usage.take()
    usage.count("k", "m", 10, 20, failed=True)
    usage.put_back(taken)
    used = usage.take()["k", "m"]
    assert (used.requests, used.errors, used.tokens_in, used.tokens_out) == (2, 1, 11, 22)


@pytest.mark.parametrize(
    ("code", "side"),
    [
        ("engine_500", "engine"),
        ("upstream_timeout", "engine"),
        ("client_disconnected", "client"),
        ("model_not_found", "client"),
        ("rate_limited", "client"),
        ("no_healthy_node", "cortex"),
        ("internal_error", "cortex"),
        ("does_not_fit", "cortex"),
    ],
)
def test_each_error_has_a_side(code, side):
    """Whose fault an error is follows from its code."""
    assert error_side(code) == side
