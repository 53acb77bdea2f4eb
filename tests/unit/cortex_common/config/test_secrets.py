from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from cortex_cli.client import target
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import load
from cortex_common.config.provenance import list_settings
from cortex_common.config.secrets import (
    hide_secret_arguments,
    hide_values,
    read_secret,
    secret_values,
)
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


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--api-key", "s3cret", "--port", "1"], ["--api-key", "***", "--port", "1"]),
        (["--hf-token=s3cret"], ["--hf-token=***"]),
        (["--api-key-file", "/run/key"], ["--api-key-file", "/run/key"]),
        (["--max-tokens", "5"], ["--max-tokens", "5"]),
        (["--api-key", "--verbose"], ["--api-key", "--verbose"]),
        (["https://user:s3cret@host/x"], ["https://***@host/x"]),
        (["--proxy=http://u:s3cret@host"], ["--proxy=http://***@host"]),
        (["a@b", "-c", "4096"], ["a@b", "-c", "4096"]),
    ],
)
def test_secrets_in_arguments_are_hidden(arguments: list[str], shown: list[str]):
    """Options that are named like secrets, and passwords in URLs."""
    assert hide_secret_arguments(arguments) == shown


def test_secrets_of_an_engine_are_hidden_in_its_log():
    """Short values are not, because they occur by chance."""
    environ = {"HF_TOKEN": "hf_s3cret", "LEVEL": "debugging", "API_KEY": "x"}
    found = secret_values(["--api-key", "sk-s3cret", "--token=tok-s3cret", "--port", "1"], environ)
    assert found == {"hf_s3cret", "sk-s3cret", "tok-s3cret"}
    line = "args: ['--api-key', 'sk-s3cret'] HF_TOKEN=hf_s3cret http://u:p@host x debugging"
    assert hide_values(line, found) == (
        "args: ['--api-key', '***'] HF_TOKEN=*** http://***@host x debugging"
    )


URLS = (
    "http://user:s3cret@gpu1:9090",
    "https://s3cret@api.example.com/v1",
    "http://gpu1:9090?key=s3cret",
    "http://gpu1:9090/#s3cret",
    "http://gpu1:99999",
    "http://gpu 1:9090",
    "http://gpu1:9090/\x1b[2J",
    "http://",
    "ftp://gpu1",
)


@pytest.mark.parametrize("url", URLS)
def test_urls_with_credentials_or_other_parts_are_refused(tmp_path: Path, url: str):
    """They are in logs, errors and the operator API; a secret in one is not in the error either."""
    file = tmp_path / "cortex.toml"
    file.write_text(f"[[neurons]]\nname = 'n'\nendpoint = {json.dumps(url)}\n")
    with pytest.raises(ConfigError) as raised:
        load(GatewayConfig, file, {})
    if "@" in url:
        assert "s3cret" not in str(raised.value)
        assert "must not contain a user name" in str(raised.value)


def test_a_gateway_url_with_credentials_is_refused_by_the_command():
    """It would be in error messages and in the output of `cortex context`."""
    with pytest.raises(ConfigError, match="must not contain") as raised:
        target("http://user:s3cret@gateway:8000", {})
    assert "s3cret" not in str(raised.value)


def test_environment_and_arguments_of_engines_are_hidden_in_the_settings(tmp_path: Path):
    """`cortex config show`, and the operator API."""
    file = tmp_path / "models.toml"
    file.write_text(
        "[[models]]\nid = 'm'\nharness = 'h'\nargs = ['--api-key', 's3cret', '-c', '1']\n"
        "[models.env]\nANYTHING = 's3cret'\n[models.params.defaults]\nauth_token = 's3cret'\n"
    )
    shown = {s.key: s.value for s in list_settings(load(Catalogue, file, {}))}
    assert "s3cret" not in str(shown)
    assert shown["models.0.args"] == ["--api-key", "***", "-c", "1"]
    assert shown["models.0.env.ANYTHING"] == "***"


def test_a_wrong_environment_variable_of_an_engine_is_not_repeated(tmp_path: Path):
    """Its value can be a secret."""
    file = tmp_path / "models.toml"
    file.write_text("[[models]]\nid = 'm'\nharness = 'h'\nenv = {PIN = 31337}\n")
    with pytest.raises(ConfigError) as raised:
        load(Catalogue, file, {})
    assert "31337" not in str(raised.value)


def test_an_engine_without_arguments_has_no_secrets():
    """Most engines start without any."""
    assert secret_values([], {}) == frozenset()
