"""Secrets: read from files, so that they appear in no command line, and hidden in everything that is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from urllib.parse import urlsplit

from cortex_common.errors import ConfigError

HIDDEN = "***"
"""Shown in place of a secret."""

_SECRET_WORDS = ("token", "secret", "password", "passwd", "api_key", "apikey", "credential")
_PATH_KEYS = ("tls.key", "certificate_key")


def is_secret(key: str) -> bool:
    """Return whether a dotted key holds a secret. Keys that hold the path of a secret do not."""
    # Token counts ("tokens_per_minute") are not secrets.
    last = key.rsplit(".", 1)[-1].lower().replace("tokens", "")
    if last.endswith(("_file", "_path")) or key.endswith(_PATH_KEYS):
        return False
    return last == "key" or last.endswith("_key") or any(word in last for word in _SECRET_WORDS)


_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")

_MIN_SECRET_LENGTH = 6
"""Shorter values would be hidden wherever they occur by chance."""


def has_userinfo(url: str) -> bool:
    """Return whether a URL contains a user name or a password."""
    try:
        return "@" in urlsplit(url).netloc
    except ValueError:
        return "@" in url


def hide_userinfo(text: str) -> str:
    """Return text in which the user names and passwords of URLs are hidden."""
    return _USERINFO.sub(HIDDEN, text) if "@" in text else text


def hide_secret_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command without secrets: values of options such as --api-key, and parts of URLs."""
    shown = []
    hides_next = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        is_option = argument.startswith("-")
        secret = is_option and is_secret(_setting_name(option))
        if hides_next and not is_option:
            shown.append(HIDDEN)
        else:
            shown.append(f"{option}={HIDDEN}" if secret and equals else hide_userinfo(argument))
        hides_next = secret and not equals
    return shown


def secret_values(arguments: Sequence[str], environ: Mapping[str, str]) -> frozenset[str]:
    """Return the secrets among the arguments and environment variables of an engine, which its log can repeat."""
    found = {value for name, value in environ.items() if is_secret(name)}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = argument.partition("=")
        if argument.startswith("-") and is_secret(_setting_name(option)):
            found.add(value if equals else following)
    return frozenset(value for value in found if len(value) >= _MIN_SECRET_LENGTH)


def hide_values(text: str, secrets: Iterable[str]) -> str:
    """Return text in which these secrets are hidden, and those in URLs."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return hide_userinfo(text)


def _setting_name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def secret_path(file: Path, environ: Mapping[str, str]) -> Path:
    """Return the path of a secret's file, which is in systemd's credentials directory for a bare name found there."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if credentials and len(file.parts) == 1 and (Path(credentials) / file).exists():
        return Path(credentials) / file
    return file


def read_secret(value: str | None, file: Path | None, environ: Mapping[str, str]) -> str | None:
    """Return the secret given by a setting or by its `_file` counterpart; None if neither is set.

    Args:
        value: the secret itself, usually from the environment.
        file: the file that contains it. A bare name is looked up among systemd's credentials first
            (LoadCredential=, https://systemd.io/CREDENTIALS/).
        environ: environment of the process.

    Raises:
        ConfigError: the file can't be read or is empty.
    """
    if value is not None or file is None:
        return value
    file = secret_path(file, environ)
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"can't read the secret in {file}: {reason}") from error
    if not secret:
        raise ConfigError(f"the secret in {file} is empty")
    return secret
