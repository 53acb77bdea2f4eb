"""Secrets from files, so that they stand in no configuration and in no command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cortex_common.errors import ConfigError

_WORDS = ("token", "secret", "password", "api_key", "apikey")
_PATHS = ("tls.key", "certificate_key")


def is_secret(key: str) -> bool:
    """Whether a dotted key names a secret; files that hold secrets are none."""
    # Counted tokens ("tokens_per_minute") are no secret ones.
    last = key.rsplit(".", 1)[-1].lower().replace("tokens", "")
    if last.endswith(("_file", "_path")) or key.endswith(_PATHS):
        return False
    return last == "key" or last.endswith("_key") or any(word in last for word in _WORDS)


def secret_path(file: Path, environ: Mapping[str, str]) -> Path:
    """Where the file of a secret is; see `read_secret`."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if credentials and len(file.parts) == 1 and (Path(credentials) / file).exists():
        return Path(credentials) / file
    return file


def read_secret(value: str | None, file: Path | None, environ: Mapping[str, str]) -> str | None:
    """The secret that a setting and its `_file` sister mean; None without either.

    Args:
        value: the secret itself, from the environment as a rule.
        file: where it stands. A bare name is looked up among systemd's credentials first
            (LoadCredential=, https://systemd.io/CREDENTIALS/).
        environ: of the process.

    Raises:
        ConfigError: the file can't be read or is empty.
    """
    if value is not None or file is None:
        return value
    file = secret_path(file, environ)
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as failed:
        reason = failed.strerror if isinstance(failed, OSError) else "not UTF-8"
        raise ConfigError(f"the secret in {file} can't be read: {reason}") from failed
    if not found:
        raise ConfigError(f"the secret in {file} is empty")
    return found
