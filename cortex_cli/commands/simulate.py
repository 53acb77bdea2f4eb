"""`cortex simulate`: compare eviction policies on a trace."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.options import output_format, single_command
from cortex_cli.output import notify, write_items
from cortex_cli.render.output_format import ListKind, OutputFormat
from cortex_cli.render.table import Column
from cortex_common.config.loader import load
from cortex_common.errors import BadRequest
from cortex_common.units import format_duration

if TYPE_CHECKING:
    from cortex_server.simulate.report import Row

app = single_command()


class Policy(StrEnum):
    """Policies that can be compared."""

    LRU = "lru"
    PRIORITY = "priority"
    COST = "cost"
    ORACLE = "oracle"


def rows_kind(bound: float) -> ListKind[Row]:
    """Return the list kind of the results.

    Args:
        bound: lower bound of the cold-start seconds.
    """
    return ListKind(
        kind="SimulationList",
        columns=(
            Column("POLICY", lambda r: r.policy),
            Column("COLD STARTS", lambda r: str(r.cold_starts), right=True),
            Column("LOADS", lambda r: str(r.loads), right=True),
            Column("COLD-START TIME", lambda r: format_duration(r.cold_start_s), right=True),
            Column(
                "× BOUND", lambda r: f"{r.cold_start_s / bound:.1f}" if bound else "", right=True
            ),
            Column("WAIT P50", lambda r: format_duration(r.wait_p50_s), right=True),
            Column("WAIT P99", lambda r: format_duration(r.wait_p99_s), right=True),
            Column("EVICTIONS", lambda r: str(r.evictions), right=True),
            Column("REFUSED", lambda r: str(r.refused), right=True),
            Column("FAILED LOADS", lambda r: str(r.failed_loads), right=True, wide=True),
            Column("IN A ROW", lambda r: str(r.most_in_vain), right=True, wide=True),
            Column("CUT", lambda r: str(r.cut), right=True, wide=True),
            Column("UNANSWERED", lambda r: str(r.unanswered), right=True, wide=True),
            Column("RUN TIME", lambda r: format_duration(r.took_s), right=True, wide=True),
        ),
        name=lambda r: r.policy,
        empty_text="no policies",
    )


def savings(rows: Sequence[Row]) -> list[str]:
    """Return how much cold-start time each policy saves compared to lru, as sentences."""
    lru = next((r.cold_start_s for r in rows if r.policy == Policy.LRU), 0.0)
    others = [r for r in rows if lru and r.policy != Policy.LRU]
    return [
        f"{r.policy} spends {abs(share):.0%} {'less' if share > 0 else 'more'} than lru on cold starts"
        for r in others
        if (share := 1 - r.cold_start_s / lru)
    ]


def failure_verdicts(rows: Sequence[Row]) -> list[str]:
    """Return for each policy how it coped with failures, as sentences; none without failures."""
    return [
        f"{r.policy}: {r.failed_loads} loads ran out of memory, at most {r.most_in_vain} of one model in a row; "
        + (
            f"{r.unanswered} requests were never answered"
            if r.unanswered
            else "every request was answered"
        )
        for r in rows
        if r.failed_loads or r.cut or r.unanswered
    ]


@app.command(
    epilog="Examples: `cortex simulate`, `cortex simulate --requests 1000000 --hosts 4 -p lru -p cost`, "
    "`cortex simulate --trace day.jsonl --fleet fleet.toml -o json`"
)
def simulate(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(help="JSON lines with time, model and tokens. Default: synthetic traffic"),
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="TOML with [[hosts]] and [[models]]. Default: synthetic")
    ] = None,
    policy: Annotated[
        list[Policy] | None,
        typer.Option(
            "--policy", "-p", help="Repeatable. Default: all; oracle knows future requests"
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Synthetic requests")] = 20_000,
    hours: Annotated[float, typer.Option(min=0.01, help="Duration of synthetic traffic")] = 24.0,
    zipf: Annotated[
        float, typer.Option(min=0.0, help="Zipf exponent of the popularity of models")
    ] = 1.1,
    burst: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fraction of requests in bursts")
    ] = 0.3,
    day: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Amplitude of the daily cycle")
    ] = 0.7,
    hosts: Annotated[int, typer.Option(min=1, help="Hosts of a synthetic fleet")] = 2,
    models: Annotated[int, typer.Option(min=1, help="Models of a synthetic fleet")] = 40,
    failures: Annotated[
        bool,
        typer.Option(
            "--failures",
            help="Engines of a synthetic fleet crash or run out of memory; hosts are away",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of synthetic traffic")] = 1,
    write_trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the trace to this file")
    ] = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Compare eviction policies on a trace."""
    from cortex_server.placement.policy import Policy as Settings
    from cortex_server.simulate.fleet import SimulatedFleet, synthetic_fleet
    from cortex_server.simulate.report import compare_policies
    from cortex_server.simulate.trace import Traffic, generate, read, write

    if fleet is not None:
        simulated = load(SimulatedFleet, fleet, {}).value
    else:
        simulated = synthetic_fleet(hosts=hosts, models=models, seed=seed, failures=failures)
    if trace is not None:
        try:
            with trace.open(encoding="utf-8") as lines:
                played = list(read(lines, str(trace)))
        except OSError as error:
            raise BadRequest(f"can't read {trace}: {error.strerror}") from error
    else:
        traffic = Traffic(requests, hours, zipf, burst, day, seed=seed)
        played = generate(traffic, (m.id for m in simulated.models))
    if write_trace is not None:
        with write_trace.open("w", encoding="utf-8") as file:
            write(played, file)
    notify(
        f"{len(played)} requests, {len(simulated.models)} models, {len(simulated.nodes())} hosts"
    )
    report = compare_policies(simulated, played, [p.value for p in policy or Policy], Settings())
    write_items(
        rows_kind(report.bound_s),
        report.rows,
        output_format(output, as_json=json),
        headers=not no_headers,
    )
    for verdict in failure_verdicts(report.rows):
        notify(verdict)
    for saving in savings(report.rows):
        notify(saving)
    notify(
        f"offline bound: {format_duration(report.bound_s)} of cold-start time; no policy that serves "
        "requests in order can need less"
    )
