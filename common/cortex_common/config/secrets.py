"""Secrets that are read from files, so that they appear in no configuration file and no command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cortex_common.errors import ConfigError

_SECRET_WORDS = ("token", "secret", "password", "api_key", "apikey")
_PATH_KEYS = ("tls.key", "certificate_key")


def is_secret(key: str) -> bool:
    """Return whether a dotted key holds a secret. Keys that hold the path of a secret do not."""
    # Token counts ("tokens_per_minute") are not secrets.
    last = key.rsplit(".", 1)[-1].lower().replace("tokens", "")
    if last.endswith(("_file", "_path")) or key.endswith(_PATH_KEYS):
        return False
    return last == "key" or last.endswith("_key") or any(word in last for word in _SECRET_WORDS)


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
