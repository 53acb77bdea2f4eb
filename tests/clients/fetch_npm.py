"""Fetch the real clients for the tests marked `npm`, outside of the checkout, and print their paths.

The packages of Claude Code and Codex contain static binaries, which need no installation, login or internet access.
About 350 MB, once. The SDKs for Node are installed with their dependencies.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 600


@dataclass(frozen=True)
class Client:
    """A program in an npm package.

    Attributes:
        name: directory below `clients_dir` to unpack it in.
        package: the package with its version.
        binary: path of the binary in the package's archive.
    """

    name: str
    package: str
    binary: str


CLAUDE_CODE = Client(
    "claude-code-2.1.330", "@anthropic-ai/claude-code-linux-x64@2.1.330", "package/claude"
)
CODEX = Client(
    "codex-0.169.0",
    "@openai/codex@0.169.0-linux-x64",
    "package/vendor/x86_64-unknown-linux-musl/bin/codex",
)


def clients_dir() -> Path:
    """Return where clients are stored: below the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "cortex" / "clients"


def find(client: Client) -> Path | None:
    """Return the binary, if it was fetched."""
    path = clients_dir() / client.name / client.binary
    return path if path.exists() else None


def fetch(client: Client) -> Path:
    """Return the binary, fetching it if necessary.

    Raises:
        OSError: npm is not installed.
        subprocess.SubprocessError: the registry is unreachable, or does not have the package.
    """
    if (found := find(client)) is not None:
        return found
    directory = clients_dir()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        subprocess.run(
            ["npm", "pack", "--silent", client.package],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        (archive,) = Path(folder).glob("*.tgz")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        unpacked.rename(directory / client.name)
    return directory / client.name / client.binary


def find_or_fetch(client: Client) -> Path | str:
    """Return the binary, or why there is none: it is fetched only with CORTEX_TEST_NPM=1."""
    if (found := find(client)) is not None:
        return found
    if os.environ.get("CORTEX_TEST_NPM") != "1":
        return f"no {client.name} in the cache: CORTEX_TEST_NPM=1 fetches it"
    try:
        return fetch(client)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{client.package} can't be fetched from npm: {error}"


NODE_PACKAGES = (
    "@ai-sdk/anthropic@3.0.140",
    "@ai-sdk/openai@3.0.141",
    "@ai-sdk/openai-compatible@2.0.92",
    "@anthropic-ai/sdk@1.14.0",
    "@langchain/core@1.4.0",
    "@langchain/openai@1.5.8",
    "ai@6.0.326",
    "openai@6.49.0",
)
"""Clients in JavaScript, with their versions."""


def find_or_install(packages: Sequence[str]) -> Path | str:
    """Return the folder of the packages, or why there is none: they are installed only with CORTEX_TEST_NPM=1."""
    version = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    folder = clients_dir() / f"node-{version}"
    modules = folder / "node_modules"
    if (folder / "installed").exists():
        return modules
    if os.environ.get("CORTEX_TEST_NPM") != "1":
        return "no packages for Node in the cache: CORTEX_TEST_NPM=1 installs them"
    folder.mkdir(parents=True, exist_ok=True)
    command = ("npm", "install", "--no-audit", "--no-fund", "--no-save", *packages)
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the packages for Node can't be installed: {error}"
    (folder / "installed").touch()
    return modules


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the packages contain binaries for Linux")
    for client in (CLAUDE_CODE, CODEX):
        print(fetch(client))
    os.environ["CORTEX_TEST_NPM"] = "1"
    print(find_or_install(NODE_PACKAGES))
