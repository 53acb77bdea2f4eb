"""`cortex bench`: how fast a model answers, as its users feel it."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cortex_cli import options
from cortex_cli.bench.statistics import LEVELS, BenchRun, compare, differences_text
from cortex_cli.client import Target, connect, run, target
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, as_text, document, say, stdout_paint
from cortex_common import __version__
from cortex_common.errors import ConfigError, LoadFailed, NotFound
from cortex_common.schema.operations import UnloadModelRequest
from cortex_common.units import format_duration

app = verb()


@app.command(
    epilog="Examples: `cortex bench qwen3-32b --save now.json`, `cortex bench qwen3-32b --compare before.json`"
)
def bench(
    model: options.Model,
    *,
    concurrency: Annotated[str, typer.Option(help="How many at a time, one run each")] = "1,4,16",
    requests: Annotated[int, typer.Option(min=1, help="Requests at each concurrency")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="About so long a question")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="At most so long an answer")] = 64,
    warmup: Annotated[int, typer.Option(min=0, help="Requests that do not count")] = 2,
    cold: Annotated[
        bool, typer.Option("--cold", help="Unload it first, and measure its load")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Write the run to this file, as JSON")] = None,
    before: Annotated[
        Path | None, typer.Option("--compare", help="A saved run to compare with")
    ] = None,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Measure how fast a model answers."""
    ramp = _ramp(concurrency)
    earlier = read_run(before) if before else None
    where = target(gateway, os.environ)
    found = run(
        _bench(
            where,
            gateway,
            model,
            ramp,
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            warmup=warmup,
            cold=cold,
        )
    )
    if save is not None:
        save.write_text(document_of(found, Output.JSON) + "\n", encoding="utf-8")
        say(f"saved in {save}; compare later runs with `cortex bench {model} --compare {save}`")
    _write(found, earlier, chosen(output, as_json=json, quiet=False))
    if any(x.errors for x in found.levels):
        raise typer.Exit(1)


def _ramp(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as failed:
        raise typer.BadParameter(
            f"{text!r} is not a list like 1,4,16", param_hint="--concurrency"
        ) from failed
    if min(found) < 1:
        raise typer.BadParameter("at least one at a time", param_hint="--concurrency")
    return found


def read_run(path: Path) -> BenchRun:
    """A run that was saved.

    Raises:
        ConfigError: the file can't be read or holds something else.
    """
    try:
        return BenchRun.model_validate_json(path.read_bytes())
    except OSError as failed:
        raise ConfigError(f"{path}: {failed.strerror or failed}") from failed
    except ValidationError as failed:
        raise ConfigError(f"{path} is no run saved by `cortex bench --save`") from failed


def document_of(found: BenchRun, form: Output) -> str:
    """A run for programs, and for `read_run`."""
    return document("BenchRun", form, **dict(found))


def _write(found: BenchRun, earlier: BenchRun | None, form: Output) -> None:
    paint = stdout_paint()
    if form in {Output.JSON, Output.YAML}:
        sys.stdout.write(document_of(found, form) + "\n")
        return
    sys.stdout.write(as_text(LEVELS, found.levels, form, paint=paint) + "\n")
    if form in {Output.TABLE, Output.WIDE}:
        say("times in milliseconds")
        if found.cold_load_s is not None:
            sys.stdout.write(f"\ncold start to first token: {format_duration(found.cold_load_s)}\n")
        if earlier is not None:
            sys.stdout.write(f"\n{differences_text(compare(earlier, found), paint)}\n")


async def _bench(
    where: Target,
    gateway: str | None,
    model: str,
    ramp: list[int],
    *,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    warmup: int,
    cold: bool,
) -> BenchRun:
    from cortex_cli.bench import measure
    from cortex_cli.inference import Inference

    began = datetime.now(UTC).replace(microsecond=0)
    levels = []
    cold_s = None
    async with Inference(where, connections=max(ramp)) as inference:
        if cold:
            async with connect(gateway) as client:
                try:
                    await client.unload(UnloadModelRequest(model=model))
                except NotFound as failed:
                    say(f"{failed.message}; so much the better")
            first = await measure.one(inference, model, measure.prompt(8, 0), 4)
            if first.first_s is None:
                raise LoadFailed(f"{model} could not be loaded: {first.error}")
            cold_s = round(first.first_s, 3)
        for number in range(warmup):
            await measure.one(
                inference, model, measure.prompt(prompt_tokens, number), output_tokens
            )
        for concurrency in ramp:
            say(f"{requests} requests, {concurrency} at a time")
            levels.append(
                await measure.at(
                    inference,
                    model,
                    concurrency=concurrency,
                    requests=requests,
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                )
            )
    return BenchRun(
        model=model,
        gateway=where.url,
        version=__version__,
        at=began,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cold_load_s=cold_s,
        levels=tuple(levels),
    )
