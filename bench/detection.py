"""What detection costs: it follows what is wrong within the window, not how many calls there are.

A year's calls at two sizes, with as many defects in the last hour. The floor is the bare queries: each rule's view,
counted over the same window, without incidents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from psycopg import sql
from rich.console import Console
from rich.table import Table

from bench.server import Connection, Server

HERE = Path(__file__).parent
LEGACY = HERE.parent / "examples/legacy/schema.sql"

DEFECTS = 1_000
ROUNDS = 5
#: The most that a look may take, in seconds, however many calls there are.
MOST = 0.100


@dataclass(frozen=True)
class Result:
    """Seconds, the median of the rounds, by number of calls: the bare queries, the first look, a later look."""

    seconds: dict[int, dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        return {"seconds": {str(calls): looks for calls, looks in self.seconds.items()}}

    def show(self, out: Console) -> None:
        sizes = list(self.seconds)
        table = Table(
            title=f"\nguard.detect('1 hour'), {DEFECTS} defects in the window, ms",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("")
        for calls in sizes:
            table.add_column(f"{calls:,} calls", justify="right")
        table.add_column(f"{sizes[-1]:,} : {sizes[0]:,}", justify="right")
        table.add_column(f"<= {MOST * 1000:.0f} ms")
        for name, title in (
            ("bare", "the views alone (floor)"),
            ("first", f"detect, opening {DEFECTS} incidents"),
            ("again", "detect, all of them known"),
        ):
            figures = [self.seconds[calls][name] for calls in sizes]
            verdict = "" if name == "bare" else ("yes" if max(figures) <= MOST else "no")
            table.add_row(title, *(f"{s * 1000:.1f}" for s in figures), f"{figures[-1] / figures[0]:.2f}", verdict)
        out.print(table)


def measure(server: Server, sizes: Sequence[int], progress: Callable[[str], None]) -> Result:
    """Load, adopt and look at 10 and 100 times as many calls as the largest of `sizes`."""
    seconds = {}
    for calls in (10 * max(sizes), 100 * max(sizes)):
        name = f"guard_bench_detection_{calls}"
        progress(f"detection: loading {calls:,} calls")
        server.create(name)
        with server.connect(name) as connection:
            connection.execute(sql.SQL(LEGACY.read_text()))
            connection.execute("select set_config('bench.calls', $1, false)", (str(calls),))
            connection.execute("select set_config('bench.defects', $1, false)", (str(DEFECTS),))
            for statement in (HERE / "detection.sql").read_text().split(";\n"):
                if statement.strip():
                    connection.execute(statement.encode())
        progress(f"detection: adopting {calls:,} calls")
        server.guard(name, "apply", "--app-timezone", "UTC")
        with server.connect(name) as connection:
            connection.execute("vacuum (analyze)")
            progress(f"detection: looking at {calls:,} calls")
            seconds[calls] = _looks(connection, server.clock(connection))
    return Result(seconds)


def _looks(connection: Connection, clock: Callable[[], float]) -> dict[str, float]:
    rules = [row[0] for row in connection.execute("select rule from guard.rules where mode <> 'off'")]
    bare = " union all ".join(
        f"select count(*) from guard.find_violations('{rule}', now() - interval '1 hour')" for rule in rules
    )
    looks: dict[str, list[float]] = {"bare": [], "first": [], "again": []}
    for _ in range(ROUNDS):
        with connection.transaction(force_rollback=True):
            for look, query in (
                ("bare", bare),
                ("first", "select sum(new_incidents) from guard.detect('1 hour')"),
                ("again", "select sum(new_incidents) from guard.detect('1 hour')"),
            ):
                started = clock()
                counted = sum(row[0] for row in connection.execute(query.encode()))
                looks[look].append(clock() - started)
                expected = 0 if look == "again" else DEFECTS
                if counted != expected:
                    raise RuntimeError(f"{look}: {counted} found, and {expected} were expected")
    return {look: median(times) for look, times in looks.items()}
