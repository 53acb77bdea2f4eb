"""What the demo does, in order."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cortex_cli.bulk import progress
from cortex_cli.client import Target
from cortex_cli.demo import files, processes
from cortex_cli.demo.files import DemoModel, Ports
from cortex_cli.demo.processes import Child
from cortex_cli.inference import Inference, Message
from cortex_cli.output import say
from cortex_common.client.gateway import OperatorClient
from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_common.schema.fleet import ModelState, NodeState
from cortex_common.schema.operations import LoadModelRequest
from cortex_common.units import format_duration

QUESTION = "Say something only you would say."
_HEALTHY_S = 60.0
_LOAD_S = 300.0
_TURN_S = 120.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What kind of demo is wanted.

    Attributes:
        once: end after the answer.
        model: a GGUF file in place of the tiny models.
        ports: to listen on, where they are free.
        view: run the live view when stdout is a terminal.
    """

    once: bool
    model: Path | None
    ports: Ports
    view: bool = True


class _Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into the cancellation of a task; further ones wait for the clean-up."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.came = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt, task)

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        if not self.came:
            self.came = True
            task.cancel()


async def demo(request: Wish) -> int:
    """Run the demo; returns the exit code.

    Raises:
        CortexError: a part of it did not come up; logs are kept and named.
    """
    processes.adopt_orphans()
    directory = Path(tempfile.mkdtemp(prefix="cortex-demo-"))
    started: list[Child] = []
    serving = asyncio.Event()
    task = asyncio.ensure_future(_run(request, directory, started, serving.set))
    interrupts = _Interrupts(task)
    kept = True
    try:
        await task
        kept = False
    except asyncio.CancelledError:
        if not interrupts.came:
            raise
        kept = False
        say("\nstopping")
        # Ending a demo that serves is how it is meant to end.
        return 0 if serving.is_set() else 130
    finally:
        # The gateway first: it would report the neuron's end as an outage.
        await processes.stop(started[::-1])
        if kept:
            say(f"logs are kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


async def _run(
    request: Wish, directory: Path, started: list[Child], serving: Callable[[], None]
) -> None:
    async with _turn():
        ports, changed = files.free_ports(request.ports)
        for line in changed:
            say(line)
        models, room = _models(request, directory)
        config = files.write_files(directory, ports, models, room)
        neuron, gateway = f"http://127.0.0.1:{ports.neuron}", f"http://127.0.0.1:{ports.api}"
        options = ["--config", str(config.gateway), "--models", str(config.models)]
        started.append(await _start("neuron", ["--config", str(config.neuron)], directory))
        started.append(await _start("gateway", options, directory))
        await asyncio.gather(_up(started[0], neuron), _up(started[1], gateway))
    await _load(gateway, models[0])
    await _ask(gateway, models[0])
    sys.stdout.write(f"\n{summary(ports, models, directory)}\n")
    sys.stdout.flush()
    serving()
    if request.once:
        return
    if request.view and sys.stdout.isatty() and sys.stdin.isatty():
        await _view(gateway)
    else:
        say("serving until interrupted")
        await _first_end(started)


@asynccontextmanager
async def _turn() -> AsyncIterator[None]:
    """Ports are only ours once they are listened on: no other demo of this user chooses its own meanwhile."""
    with socket.socket(socket.AF_UNIX) as turn:
        with suppress(TimeoutError):
            async with asyncio.timeout(_TURN_S):
                while not _taken(turn):  # noqa: ASYNC110 - nobody tells when a name becomes free
                    await asyncio.sleep(0.1)
        yield


def _taken(turn: socket.socket) -> bool:
    """Whether the name that stands for the turn is ours; the kernel frees it with its process."""
    try:
        turn.bind(f"\0cortex-demo-{os.getuid()}")
    except OSError:
        return False
    return True


def _models(request: Wish, directory: Path) -> tuple[list[DemoModel], int | None]:
    """What the demo serves, and the MiB that there are for it; None for what the host has."""
    if request.model is not None:
        return [files.own_model(request.model)], None
    models = files.write_models(directory / "models")
    say(f"wrote {len(models)} tiny models with random weights: {', '.join(m.id for m in models)}")
    return models, files.ROOM_MB


async def _start(name: str, options: list[str], directory: Path) -> Child:
    say(f"starting the {name}")
    arguments = ["serve", name, *options, "--log-format", "console"]
    return await processes.start(name, arguments, directory / f"{name}.log")


async def _up(child: Child, url: str) -> None:
    took = await processes.healthy(child, url, _HEALTHY_S)
    say(f"the {child.name} is up on {url} after {format_duration(took)}")


async def _load(gateway: str, model: DemoModel) -> None:
    async with OperatorClient(gateway, who="the gateway") as client:
        await _node_up(client)
        say(f"loading {model.id}")
        async with progress(client, model.id):
            action = await client.load(
                LoadModelRequest(model=model.id, wait=True, timeout_s=_LOAD_S)
            )
    if action.state is not ModelState.READY:
        raise UpstreamTimeout(f"{model.id} is still {action.state.value}")
    say(f"loaded {model.id} in {format_duration(action.seconds)}")


async def _node_up(client: OperatorClient) -> None:
    """Wait until the gateway sees its node."""
    try:
        async with asyncio.timeout(_HEALTHY_S):
            async for snapshot in client.watch_fleet():
                if any(n.state is NodeState.UP for n in snapshot.nodes):
                    return
    except TimeoutError as failed:
        raise UpstreamTimeout("the gateway does not find its node") from failed


async def _ask(gateway: str, model: DemoModel) -> None:
    said = f"asking {model.id}: {QUESTION}"
    say(
        said
        if not files.TINY_MODELS.count(model.id)
        else f"{said} (its weights are noise, so it babbles)"
    )
    answer = ""
    async with Inference(Target(gateway)) as inference:
        question = [Message(role="user", content=QUESTION)]
        async for piece in inference.chat(model.id, question, max_tokens=64):
            answer += piece.text
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    if not answer:
        raise UpstreamFailed(f"{model.id} gave an empty answer")


def summary(ports: Ports, models: list[DemoModel], directory: Path) -> str:
    """Five lines: what runs, what there is to ask, and how to ask it."""
    url = f"http://127.0.0.1:{ports.api}"
    first, *others = [m.id for m in models]
    body = json.dumps(
        {
            "model": first,
            "stream": True,
            "max_tokens": 48,
            "messages": [{"role": "user", "content": "hello"}],
        }
    )
    more = f"; {' and '.join(others)} load when asked for, and two fit at a time" if others else ""
    python = (
        f"from openai import OpenAI; print(OpenAI(base_url='{url}/v1', api_key='none')"
        f".chat.completions.create(model='{first}', max_tokens=48, "
        "messages=[{'role': 'user', 'content': 'hello'}]).choices[0].message.content)"
    )
    return "\n".join(
        [
            f"running:  gateway {url}, neuron http://127.0.0.1:{ports.neuron}, logs {directory}",
            f"models:   {first} is ready{more}",
            f"curl:     curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
            f'python:   python -c "{python}"',
            f"operate:  cortex --help; CORTEX_GATEWAY_URL={url} cortex ps --watch",
        ]
    )


async def _first_end(started: list[Child]) -> None:
    """Wait until a daemon ends, which it should not.

    Raises:
        UpstreamFailed: that happened.
    """
    waits = {asyncio.create_task(child.process.wait()): child for child in started}
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    child = waits[done.pop()]
    raise UpstreamFailed(f"the {child.name} ended by itself:\n{child.last_words()}")


async def _view(gateway: str) -> None:
    """The live view in a process of its own, on this terminal; leaving it ends the demo."""
    words = ["top"] if find_spec("textual") else ["ps", "--watch"]
    view = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cortex_cli", *words, "--gateway", gateway, env=os.environ.copy()
    )
    try:
        await view.wait()
    finally:
        if view.returncode is None:
            view.terminate()
            await view.wait()
