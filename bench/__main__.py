"""Run every benchmark on one server, and print what each found."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import click
from rich.console import Console

from bench import breaker, detection, triggers, validation
from bench.server import scratch_server

BENCHES: dict[str, Any] = {"triggers": triggers, "detection": detection, "validation": validation, "breaker": breaker}


@click.command()
@click.argument("rows", nargs=-1, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print the raw figures, in seconds, instead of tables.")
def main(rows: tuple[int, ...], as_json: bool) -> None:
    """Measure what guard costs at so many ROWS, by default at 1000, 10000 and 100000.

    Works on scratch databases of the server that GUARD_DSN names, as superuser; without it on a server of its own.
    The exit status says nothing about the figures.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    out, err = Console(highlight=False), Console(stderr=True)
    results: dict[str, Any] = {}
    with scratch_server() as server, err.status("") as status:
        results["postgresql"] = server.version
        for name, bench in BENCHES.items():
            result = bench.measure(server, sorted(rows) or [1_000, 10_000, 100_000], status.update)
            if as_json:
                results[name] = result.as_json()
            else:
                result.show(out)
    if as_json:
        click.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(prog_name="python -m bench")
