"""Gets the real Claude Code and Codex for the tests marked `npm`, outside of the checkout, and prints their paths.

Their npm packages carry static binaries, which run without an installation, a login or the internet. Some 350 MB, once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 600


@dataclass(frozen=True)
class Client:
    """A program in an npm package.

    Attributes:
        package: with its version.
        inside: path of the binary in the package's archive.
    """

    name: str
    package: str
    inside: str


CLAUDE_CODE = Client(
    "claude-code-2.1.330", "@anthropic-ai/claude-code-linux-x64@2.1.330", "package/claude"
)
CODEX = Client(
    "codex-0.169.0",
    "@openai/codex@0.169.0-linux-x64",
    "package/vendor/x86_64-unknown-linux-musl/bin/codex",
)


def clients_dir() -> Path:
    """Where clients are kept: below the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "cortex" / "clients"


def find(client: Client) -> Path | None:
    """The binary, if it was fetched."""
    path = clients_dir() / client.name / client.inside
    return path if path.exists() else None


def fetch(client: Client) -> Path:
    """Fetch it unless it is there.

    Raises:
        OSError: there is no npm.
        subprocess.SubprocessError: the registry can't be reached, or does not have it.
    """
    if (found := find(client)) is not None:
        return found
    home = clients_dir()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        subprocess.run(
            ["npm", "pack", "--silent", client.package],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        (archive,) = Path(folder).glob("*.tgz")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        unpacked.rename(home / client.name)
    return home / client.name / client.inside


def acquire(client: Client) -> Path | str:
    """The binary, or why there is none: it is fetched only where CORTEX_TEST_NPM=1 asks for that."""
    if (found := find(client)) is not None:
        return found
    if os.environ.get("CORTEX_TEST_NPM") != "1":
        return f"no {client.name} in the cache: CORTEX_TEST_NPM=1 fetches it"
    try:
        return fetch(client)
    except (OSError, subprocess.SubprocessError) as failed:
        return f"{client.package} can't be had from npm: {failed}"


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the packages carry binaries for Linux")
    for wanted in (CLAUDE_CODE, CODEX):
        print(fetch(wanted))
