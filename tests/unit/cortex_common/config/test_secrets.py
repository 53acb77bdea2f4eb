from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from cortex_common.config.secrets import read_secret
from cortex_common.errors import ConfigError
from cortex_common.log import _ConsoleFormatter, event


def test_secret_is_read_without_surrounding_whitespace(tmp_path):
    """Editors end files with a newline, which is not part of the secret."""
    (tmp_path / "t").write_text(" s3cret \n")
    assert read_secret(None, tmp_path / "t", {}) == "s3cret"
    assert read_secret("given", tmp_path / "t", {}) == "given"
    assert read_secret(None, None, {}) is None


def test_bare_name_is_looked_up_among_credentials(tmp_path):
    """A bare name is found in systemd's credentials directory; a path is used as is."""
    (tmp_path / "t").write_text("s3cret")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_secret(None, Path("t"), environ) == "s3cret"
    with pytest.raises(ConfigError, match="other/t"):
        read_secret(None, Path("other/t"), environ)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_unusable_secret_file_is_named_in_the_error(tmp_path, content):
    """If a file is empty or not text, the error contains its name but not its content."""
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path / "t")):
        read_secret(None, tmp_path / "t", {})


def test_log_lines_escape_control_characters():
    """Escape sequences and line breaks in external text are escaped, so that a terminal does not execute them."""
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(_ConsoleFormatter())
    log = logging.Logger("test")  # noqa: LOG001 - not shared with other tests
    log.addHandler(handler)
    event(log, "engine_output", text="\x1b[2Jgone\r\nevent=forged \x9b31m", plain="ok")
    line = sink.getvalue()
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert "plain=ok" in line
