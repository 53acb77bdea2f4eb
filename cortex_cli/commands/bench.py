"""`cortex bench`: measure latency and throughput of a model."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from cortex_cli import options
from cortex_cli.bench.statistics import LEVELS, BenchRun, compare_runs, format_differences
from cortex_cli.client import GatewayTarget, connect, run, target
from cortex_cli.options import output_format, single_command
from cortex_cli.output import notify, stdout_colors
from cortex_cli.render.output_format import OutputFormat, format_document, format_items
from cortex_cli.terminal import write_out
from cortex_common import __version__
from cortex_common.errors import ConfigError, LoadFailed, NotFound
from cortex_common.schema.operations import UnloadModelRequest
from cortex_common.units import format_duration

if TYPE_CHECKING:
    from cortex_cli.bench.measure import Workload
    from cortex_cli.inference import Inference

app = single_command()


@app.command(
    epilog="Examples: `cortex bench qwen3-32b --save now.json`, `cortex bench qwen3-32b --compare before.json`"
)
def bench(
    model: options.Model,
    *,
    concurrency: Annotated[
        str, typer.Option(help="Concurrent requests; one run for each number")
    ] = "1,4,16",
    requests: Annotated[int, typer.Option(min=1, help="Requests per run")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Approximate prompt length")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Maximum response length")] = 64,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the measurement")] = 2,
    cold: Annotated[
        bool, typer.Option("--cold", help="Unload the model first and measure its load")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Save the results to this file, as JSON")
    ] = None,
    before: Annotated[
        Path | None, typer.Option("--compare", help="Saved results to compare with")
    ] = None,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Measure latency and throughput of a model."""
    levels = _parse_concurrency(concurrency)
    previous = read_run(before) if before else None

    from cortex_cli.bench.measure import Workload

    workload = Workload(model, requests, prompt_tokens, output_tokens)
    where = target(gateway, os.environ)
    result = run(_bench(where, gateway, workload, levels, warmup=warmup, cold=cold))
    if save is not None:
        save.write_text(run_document(result, OutputFormat.JSON) + "\n", encoding="utf-8")
        notify(f"saved to {save}; compare later runs with `cortex bench {model} --compare {save}`")
    _write(result, previous, output_format(output, as_json=json))
    if any(level.errors for level in result.levels):
        raise typer.Exit(1)


def _parse_concurrency(text: str) -> list[int]:
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a list such as 1,4,16", param_hint="--concurrency"
        ) from error
    if min(levels) < 1:
        raise typer.BadParameter("must be at least 1", param_hint="--concurrency")
    return levels


def read_run(path: Path) -> BenchRun:
    """Read saved results.

    Raises:
        ConfigError: the file can't be read or is not a saved run.
    """
    try:
        return BenchRun.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} was not written by `cortex bench --save`") from error


def run_document(result: BenchRun, output: OutputFormat) -> str:
    """Return results in a structured format, which `read_run` can read."""
    return format_document("BenchRun", output, **dict(result))


def _write(result: BenchRun, previous: BenchRun | None, output: OutputFormat) -> None:
    colors = stdout_colors()
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        write_out(run_document(result, output) + "\n")
        return
    write_out(format_items(LEVELS, result.levels, output, colors=colors) + "\n")
    if output.tabular:
        notify("times in milliseconds")
        if result.cold_load_s is not None:
            duration = format_duration(result.cold_load_s)
            write_out(f"\ncold start to first token: {duration}\n")
        if previous is not None:
            differences = compare_runs(previous, result)
            write_out(f"\n{format_differences(differences, colors)}\n")


async def _bench(
    where: GatewayTarget,
    gateway: str | None,
    workload: Workload,
    levels: list[int],
    *,
    warmup: int,
    cold: bool,
) -> BenchRun:
    from cortex_cli.bench import measure
    from cortex_cli.inference import Inference

    started = datetime.now(UTC).replace(microsecond=0)
    results = []
    async with Inference(where, connections=max(levels)) as inference:
        cold_s = await _cold_start(gateway, inference, workload.model) if cold else None
        for number in range(warmup):
            await measure.measure_request(inference, workload, number)
        for concurrency in levels:
            notify(f"{workload.requests} requests, {concurrency} concurrent")
            results.append(await measure.measure_level(inference, workload, concurrency))
    return BenchRun(
        model=workload.model,
        gateway=where.url,
        version=__version__,
        at=started,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        cold_load_s=cold_s,
        levels=tuple(results),
    )


async def _cold_start(gateway: str | None, inference: Inference, model: str) -> float:
    """Return the seconds from a request for the unloaded model to its first token."""
    from cortex_cli.bench.measure import Workload, measure_request

    async with connect(gateway) as client:
        try:
            await client.unload(UnloadModelRequest(model=model))
        except NotFound as error:
            notify(error.message)
    first = await measure_request(inference, Workload(model, 1, 8, 4), 0)
    if first.first_s is None:
        raise LoadFailed(f"{model} could not be loaded: {first.error}")
    return round(first.first_s, 3)
