from __future__ import annotations

import io
from pathlib import Path

import pytest

from cortex_cli.client import DEFAULT_GATEWAY, GatewayTarget, client_config_path, target
from cortex_cli.color import Colors, colors_for
from cortex_common.config.access import TlsSection
from cortex_common.errors import AuthenticationFailed, ConfigError, NotFound
from cortex_common.net.tls import ServerTls


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Return an environment with two contexts."""
    environ = {"HOME": str(tmp_path)}
    path = client_config_path(environ)
    path.parent.mkdir(parents=True)
    (tmp_path / "key").write_text("secret-of-prod\n")
    path.write_text(
        'context = "prod"\n'
        f'[contexts.prod]\ngateway = "http://prod:8000/"\nkey_file = "{tmp_path / "key"}"\n'
        '[contexts.lab]\ngateway = "http://lab:8000"\n'
    )
    return environ


def test_the_default_gateway_is_on_this_host(tmp_path: Path):
    """Without option, variable and context, the gateway is on loopback and no key is sent."""
    assert target(None, {"HOME": str(tmp_path)}) == GatewayTarget(DEFAULT_GATEWAY)


def test_the_current_context_is_used(home: dict[str, str]):
    """The current context provides URL and key."""
    assert target(None, home) == GatewayTarget("http://prod:8000", "secret-of-prod", "prod")


def test_the_variable_overrides_the_context(home: dict[str, str]):
    """CORTEX_GATEWAY_URL overrides the current context, whose key is not sent to that gateway."""
    environ = home | {"CORTEX_GATEWAY_URL": "http://other:8000"}

    assert target(None, environ) == GatewayTarget("http://other:8000")


@pytest.mark.parametrize("key", ["ctx_a\nctx_b", "ctx_\u2026", "\x1b[0m"])
def test_an_invalid_key_is_rejected_without_being_shown(tmp_path: Path, key: str):
    """A key with invalid characters is an authentication error that does not contain the key."""
    (tmp_path / "key").write_text(key, encoding="utf-8")
    for environ in ({"CORTEX_API_KEY": key}, {"CORTEX_API_KEY_FILE": str(tmp_path / "key")}):
        with pytest.raises(AuthenticationFailed) as caught:
            target(None, {"HOME": str(tmp_path), **environ})
        assert key not in caught.value.message
    assert target(None, {"HOME": str(tmp_path), "CORTEX_API_KEY": "good\n"}).key == "good"


def test_an_invalid_certificate_file_is_reported_as_such(tmp_path: Path):
    """The error is readable, unlike OpenSSL's "PEM lib"."""
    path = tmp_path / "cert.pem"
    path.write_text("x")

    with pytest.raises(ConfigError, match=r"cert\.pem: not a PEM certificate and key"):
        ServerTls(TlsSection(certificate=path, key=path))


def test_the_option_overrides_the_variable(home: dict[str, str]):
    """--gateway overrides everything and accepts the name of a context."""
    environ = home | {"CORTEX_GATEWAY_URL": "http://other:8000"}

    assert target("lab", environ) == GatewayTarget("http://lab:8000", None, "lab")


def test_the_environment_overrides_the_key_file(home: dict[str, str]):
    """CORTEX_API_KEY overrides a context's key file."""
    assert target(None, home | {"CORTEX_API_KEY": "mine"}).key == "mine"


def test_the_key_can_be_read_from_a_file(tmp_path: Path):
    """The key is the content of CORTEX_API_KEY_FILE without the newline."""
    (tmp_path / "k").write_text("abc\n")
    environ = {"HOME": str(tmp_path), "CORTEX_API_KEY_FILE": str(tmp_path / "k")}

    assert target("http://a:1", environ).key == "abc"


def test_a_missing_key_file_is_an_error(tmp_path: Path):
    """A missing key file is an error, not the same as no key."""
    environ = {"HOME": str(tmp_path), "CORTEX_API_KEY_FILE": str(tmp_path / "none")}

    with pytest.raises(ConfigError, match="can't be read"):
        target(None, environ)


def test_an_unknown_context_suggests_the_nearest(home: dict[str, str]):
    """The error of an unknown context suggests the most similar one."""
    with pytest.raises(NotFound) as caught:
        target("prd", home)

    assert caught.value.hints == ("did you mean 'prod'?",)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "tty", "enabled"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"CLICOLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"CORTEX_COLOR": "always", "NO_COLOR": "1"}, False, True),
        ({"CORTEX_COLOR": "never"}, True, False),
    ],
)
def test_when_color_is_enabled(environ: dict[str, str], tty: bool, enabled: bool):
    """Color follows --color, then the common environment variables, then the terminal."""
    assert colors_for(Terminal() if tty else io.StringIO(), environ) == Colors(enabled=enabled)
