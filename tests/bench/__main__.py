"""`make bench`: run the benchmark, and print its table or write it to docs/performance.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.bench.candidates import CANDIDATES
from tests.bench.dataplane import SCENARIOS, Cpus, run
from tests.bench.report import table


def main() -> None:
    """Parse the arguments, run the benchmark, and report the results."""
    every = [c.name for c in CANDIDATES]
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("--candidates", default=",".join(every), help="comma-separated")
    parser.add_argument(
        "--scenarios", default="ns32,ns256,s50,s500,sat", help=f"of {','.join(SCENARIOS)}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="duration of each run")
    parser.add_argument(
        "--cpus",
        default="0 0 1",
        help="CPU lists of backend, client and gateway, in the format of taskset -c",
    )
    parser.add_argument("--json", type=Path, help="file for all figures as JSON")
    parser.add_argument(
        "--write", action="store_true", help="write the table to docs/performance.md"
    )
    args = parser.parse_args()
    report = run(
        args.candidates.split(","),
        args.scenarios.split(","),
        args.rounds,
        args.seconds,
        Cpus(*args.cpus.split()),
    )
    if args.json:
        args.json.write_text(json.dumps(report))
    text = table(report)
    print(text)
    if args.write:
        page = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
        head, _, rest = page.read_text().partition("<!-- table -->\n")
        _, _, tail = rest.partition("<!-- end -->\n")
        page.write_text(f"{head}<!-- table -->\n{text}\n<!-- end -->\n{tail}")


if __name__ == "__main__":
    main()
