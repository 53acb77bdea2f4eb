"""Lists the source files that a streamed request and a cold load go through, in the order in which they are entered.

`PYTHONPATH=tests python -m trace_files` prints them; `--write` puts them into docs/architecture.md. A real gateway, a
real neuron and its embedded engine serve the requests; gateway and neuron run in this process under a profiler.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lifecycle_kit import MODEL_MB, Served, gateway, neuron, tiny, until

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(
    str(ROOT / name) + "/"
    for name in ("common/cortex_common", "common/cortex_http", "cortex_server", "neuron_server")
)
PAGE = ROOT / "docs" / "architecture.md"
ROUNDS = 5


@contextlib.contextmanager
def traced() -> Iterator[list[str]]:
    """Collect the project's files whose functions are called, in the order of their first call."""
    files: dict[str, None] = {}

    def enter(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGES):
            files[name] = None

    found: list[str] = []
    threading.setprofile_all_threads(enter) if sys.version_info >= (
        3,
        12,
    ) else threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        found += [str(Path(name).relative_to(ROOT)) for name in files]


async def streamed(served: Served) -> list[str]:
    """Return the files of a streamed request to a ready instance.

    Periodic tasks run meanwhile, so a file counts only if each of several requests went through it.
    """
    runs = []
    for _ in range(ROUNDS):
        with traced() as files:
            answer = await served.chat("ada", stream=True)
        assert answer.status_code == 200, answer.text
        assert "[DONE]" in answer.text
        runs.append(files)
        await asyncio.sleep(0)
    return [name for name in runs[0] if all(name in run for run in runs)]


async def cold(served: Served) -> list[str]:
    """Return the files of a request whose model evicts another one and is loaded first."""
    with traced() as files:
        answer = await served.chat("bob")
    assert answer.headers.get("x-cortex-cold-start") == "true"
    return files


async def measure(folder: Path) -> dict[str, list[str]]:
    """Trace both on a node that has room for one model."""
    models = (tiny(folder, "ada"), tiny(folder, "bob"))
    eager = {"placement": {"drain_after": 0.2}, "eviction": {"min_residency": 0}}
    async with (
        neuron(folder, MODEL_MB + 8) as node,
        gateway({"here": node.url}, models, **eager) as served,
    ):
        await until(lambda: served.gateway.fleet.snapshot.nodes[0].state == "up")
        await served.chat("ada")
        return {"request-files": await streamed(served), "load-files": await cold(served)}


def main() -> None:
    """Print the files, or write them into the page."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder)))
    page = PAGE.read_text()
    for mark, files in found.items():
        text = textwrap.fill(
            f"{len(files)} files: {', '.join(f'`{name}`' for name in files)}.",
            120,
            break_long_words=False,
            break_on_hyphens=False,
        )
        print(f"{mark}: {text}\n")
        head, _, rest = page.partition(f"<!-- {mark} -->\n")
        _, end, tail = rest.partition(f"<!-- end {mark} -->")
        page = f"{head}<!-- {mark} -->\n{text}\n{end}{tail}" if end else page
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
