"""The steps of the demo: start a neuron and a gateway, load a model, ask it a question."""

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

from cortex_cli.bulk import show_progress
from cortex_cli.client import GatewayTarget
from cortex_cli.demo import files, processes
from cortex_cli.demo.files import DemoModel, Ports
from cortex_cli.demo.processes import ChildProcess
from cortex_cli.inference import Inference, Message
from cortex_cli.output import notify
from cortex_cli.terminal import write_out
from cortex_common.client.gateway import OperatorClient
from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_common.schema.fleet import ModelState, NodeState
from cortex_common.schema.operations import LoadModelRequest
from cortex_common.units import format_duration

QUESTION = "Tell me something that only you would say."
_HEALTHY_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 300.0
_LOCK_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo.

    Attributes:
        once: stop after the response.
        model: GGUF file to use instead of the tiny models.
        ports: preferred ports.
        view: show the live view if stdout is a terminal.
    """

    once: bool
    model: Path | None
    ports: Ports
    view: bool = True


class _SignalHandler:
    """Cancels a task at the first SIGINT, SIGTERM or SIGHUP, and ignores further ones during the cleanup."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.interrupted = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt, task)

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        if not self.interrupted:
            self.interrupted = True
            task.cancel()


async def run_demo(options: DemoOptions) -> int:
    """Run the demo and return the exit code.

    Raises:
        CortexError: a part failed; the logs are kept, and their directory is printed.
    """
    processes.adopt_orphans()
    directory = Path(tempfile.mkdtemp(prefix="cortex-demo-"))
    children: list[ChildProcess] = []
    serving = asyncio.Event()
    task = asyncio.ensure_future(_run(options, directory, children, serving.set))
    signals = _SignalHandler(task)
    keep_logs = True
    try:
        await task
        keep_logs = False
    except asyncio.CancelledError:
        if not signals.interrupted:
            raise
        keep_logs = False
        notify("\nstopping")
        # Interrupting a demo that is serving is the normal way to stop it.
        return 0 if serving.is_set() else 130
    finally:
        # The gateway first, because it would report the neuron's exit as an outage.
        await processes.stop(children[::-1])
        if keep_logs:
            notify(f"logs are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


async def _run(
    options: DemoOptions, directory: Path, children: list[ChildProcess], serving: Callable[[], None]
) -> None:
    async with _port_lock():
        ports, messages = files.choose_ports(options.ports)
        for message in messages:
            notify(message)
        models, capacity_mb = _models(options, directory)
        config = files.write_files(directory, ports, models, capacity_mb)
        neuron, gateway = f"http://127.0.0.1:{ports.neuron}", f"http://127.0.0.1:{ports.api}"
        arguments = ["--config", str(config.gateway), "--models", str(config.models)]
        children.append(await _start("neuron", ["--config", str(config.neuron)], directory))
        children.append(await _start("gateway", arguments, directory))
        await asyncio.gather(
            _wait_healthy(children[0], neuron), _wait_healthy(children[1], gateway)
        )
    await _load(gateway, models[0])
    await _ask(gateway, models[0])
    write_out(f"\n{summary(ports, models, directory)}\n")
    sys.stdout.flush()
    serving()
    if options.once:
        return
    if options.view and sys.stdout.isatty() and sys.stdin.isatty():
        await _view(gateway)
    else:
        notify("serving until interrupted")
        await _wait_for_exit(children)


@asynccontextmanager
async def _port_lock() -> AsyncIterator[None]:
    """Hold a lock among the demos of this user, from choosing ports to listening on them."""
    with socket.socket(socket.AF_UNIX) as lock:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOCK_TIMEOUT_S):
                while not _acquire(lock):  # noqa: ASYNC110 - there is no event for a name that becomes free
                    await asyncio.sleep(0.1)
        yield


def _acquire(lock: socket.socket) -> bool:
    """Return whether the lock was acquired; the kernel releases it when the process exits."""
    try:
        lock.bind(f"\0cortex-demo-{os.getuid()}")
    except OSError:
        return False
    return True


def _models(options: DemoOptions, directory: Path) -> tuple[list[DemoModel], int | None]:
    """Return the models and the MiB that they can use; None for the host's memory."""
    if options.model is not None:
        return [files.user_model(options.model)], None
    models = files.write_models(directory / "models")
    notify(
        f"wrote {len(models)} tiny models with random weights: {', '.join(m.id for m in models)}"
    )
    return models, files.CAPACITY_MB


async def _start(name: str, arguments: list[str], directory: Path) -> ChildProcess:
    notify(f"starting the {name}")
    command = ["serve", name, *arguments, "--log-format", "console"]
    return await processes.start(name, command, directory / f"{name}.log")


async def _wait_healthy(child: ChildProcess, url: str) -> None:
    duration = await processes.wait_healthy(child, url, _HEALTHY_TIMEOUT_S)
    notify(f"the {child.name} is ready on {url} after {format_duration(duration)}")


async def _load(gateway: str, model: DemoModel) -> None:
    async with OperatorClient(gateway, who="the gateway") as client:
        await _wait_for_node(client)
        notify(f"loading {model.id}")
        async with show_progress(client, model.id):
            action = await client.load(
                LoadModelRequest(model=model.id, wait=True, timeout_s=_LOAD_TIMEOUT_S)
            )
    if action.state is not ModelState.READY:
        raise UpstreamTimeout(f"{model.id} is still {action.state.value}")
    notify(f"loaded {model.id} in {format_duration(action.seconds)}")


async def _wait_for_node(client: OperatorClient) -> None:
    """Wait until the gateway is connected to its node."""
    try:
        async with asyncio.timeout(_HEALTHY_TIMEOUT_S):
            async for snapshot in client.watch_fleet():
                if any(n.state is NodeState.UP for n in snapshot.nodes):
                    return
    except TimeoutError as error:
        raise UpstreamTimeout("the gateway did not connect to its node") from error


async def _ask(gateway: str, model: DemoModel) -> None:
    question = f"asking {model.id}: {QUESTION}"
    notify(
        f"{question} (its weights are random, so it produces gibberish)"
        if model.id in files.TINY_MODELS
        else question
    )
    answer = ""
    async with Inference(GatewayTarget(gateway)) as inference:
        messages = [Message(role="user", content=QUESTION)]
        async for chunk in inference.chat(model.id, messages, max_tokens=64):
            answer += chunk.text
            write_out(chunk.text)
            sys.stdout.flush()
    write_out("\n")
    if not answer:
        raise UpstreamFailed(f"{model.id} sent an empty response")


def summary(ports: Ports, models: list[DemoModel], directory: Path) -> str:
    """Return what is running and how to use it, in five lines."""
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
    more = (
        f"; {' and '.join(others)} load on request, and two models fit at a time" if others else ""
    )
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


async def _wait_for_exit(children: list[ChildProcess]) -> None:
    """Wait until a daemon exits unexpectedly.

    Raises:
        UpstreamFailed: a daemon exited.
    """
    waits = {asyncio.create_task(child.process.wait()): child for child in children}
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    child = waits[done.pop()]
    raise UpstreamFailed(f"the {child.name} exited unexpectedly:\n{child.log_tail()}")


async def _view(gateway: str) -> None:
    """Run the live view in its own process on this terminal; the demo stops when it is closed."""
    command = ["top"] if find_spec("textual") else ["ps", "--watch"]
    view = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cortex_cli", *command, "--gateway", gateway, env=os.environ.copy()
    )
    try:
        await view.wait()
    finally:
        if view.returncode is None:
            view.terminate()
            await view.wait()
