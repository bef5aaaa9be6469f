"""What `guard.validate_appointment` costs a client, beside the round trip of `select 1`.

Both are asked in turn on one connection, over calls picked at random; each validation finds a sound booking, and so
runs all checks and writes its metric.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.server import Connection, Server

ROUNDS = 5_000
#: The most that 95 of 100 validations may take, in seconds.
MOST = 0.005

VALIDATE = """
    select v.success from guard.validate_appointment($1, $1, left(md5('booking' || $1::text), 22)) as v
"""


@dataclass
class Result:
    """Seconds of each round trip."""

    calls: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"select 1": [], "validate_appointment": []})

    def as_json(self) -> dict[str, Any]:
        return {"calls": self.calls, "seconds": self.seconds}

    def show(self, out: Console) -> None:
        table = Table(
            title=f"A validation among {self.calls:,} calls",
            title_justify="left",
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("")
        for column in ("p50 ms", "p95 ms", "p95 in round trips", "p95 at most", ""):
            table.add_column(column, justify="right")
        floor = _percentile(self.seconds["select 1"], 95)
        for name, seconds in self.seconds.items():
            p95 = _percentile(seconds, 95)
            limited = name != "select 1"
            table.add_row(
                name,
                f"{_percentile(seconds, 50) * 1000:.3f}",
                f"{p95 * 1000:.3f}",
                f"{p95 / floor:.1f}",
                f"{MOST * 1000:g} ms" if limited else "",
                ("[green]met" if p95 <= MOST else "[red]missed") if limited else "",
            )
        out.print(table)


def measure(server: Server, sizes: Sequence[int], progress: Callable[[str], None]) -> Result:
    """Measure among ten calls for each row of the greatest size."""
    result = Result(10 * max(sizes))
    progress(f"validation: making {result.calls:,} calls")
    server.create("validation")
    server.guard("validation", "apply")
    with server.connect("validation") as connection:
        connection.execute(f"set bench.calls = {result.calls}")
        for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n"):
            if statement.strip():
                connection.execute(statement)
        booked = random.choices(range(2, result.calls + 1, 2), k=ROUNDS)
        for call in booked[: ROUNDS // 10]:
            _ask(connection, VALIDATE, call)  # not counted: caches are cold
        progress(f"validation: {ROUNDS:,} of them")
        for call in booked:
            result.seconds["select 1"].append(_ask(connection, "select true"))
            result.seconds["validate_appointment"].append(_ask(connection, VALIDATE, call))
    return result


def _ask(connection: Connection, query: str, *parameters: int) -> float:
    begun = time.perf_counter()
    row = connection.execute(query, parameters).fetchone()
    taken = time.perf_counter() - begun
    if row != (True,):
        raise AssertionError(f"{query}: {row}")
    return taken


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]
