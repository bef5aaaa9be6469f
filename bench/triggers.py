"""What guard's triggers cost a write, against no triggers, a hand-written UPDATE, and triggers for each row.

The floor is what an application pays that keeps its calls true by hand: the same statement, and one set-based UPDATE
of the calls in the same transaction. All variants have the same tables, indexes and constraints, but for `bare`, which
lacks those that guard added, and so shows what they cost.

A round takes the variants one after the other, each from the same state. The fastest round counts, since whatever else
the machine does only adds; the range of the ratios within one round shows how quiet it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg import sql
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from bench.server import Connection, Server

HERE = Path(__file__).parent
LEGACY = HERE.parent / "examples/legacy/schema.sql"

#: The calls, each with its appointment, that are there before anything is measured.
HISTORY = 2_000
#: The statements of one row each that are measured together; `mixed`: after so many of as many rows each.
SINGLES, BULKS = 1_000, 6
#: Rounds are as many as write about this many rows, within limits.
ROWS_IN_ALL, FEWEST_ROUNDS, MOST_ROUNDS = 40_000, 2, 11

SCHEMAS = {
    "brownfield": "the legacy schema as guard adopted it, every rule at correct",
    "greenfield": "the tables that guard makes, every rule at correct",
}
#: Each variant with the scripts that make it out of a database with guard.
VARIANTS: dict[str, tuple[str, ...]] = {
    "bare": ("drop_triggers.sql", "drop_constraints.sql"),
    "none": ("drop_triggers.sql",),
    "floor": ("drop_triggers.sql", "link_call.sql"),
    "row_level": ("drop_triggers.sql", "row_level_triggers.sql"),
    "guard": (),
}
NAMES = {"none": "no triggers", "floor": "floor", "row_level": "row-level", "guard": "guard"}


@dataclass(frozen=True)
class Operation:
    """What is measured, the variant that it is compared with, and the most that guard may take of that."""

    title: str
    base: str = "floor"
    most: float | None = None
    sizes: Sequence[int] | None = None


OPERATIONS = {
    "linked": Operation("INSERT linked appointments", most=1.25),
    "single": Operation("INSERT linked appointments, one a statement", sizes=(SINGLES,)),
    "mixed": Operation("INSERT linked appointments, one a statement, after bulk inserts", sizes=(SINGLES,)),
    "delete": Operation("DELETE linked appointments", most=2.0),
    "calls": Operation("INSERT sound calls", base="none", most=1.10),
}
#: The least that triggers for each row add to a bulk insert of appointments, as a multiple of what guard adds.
LEAST_SAVING = 2.0
#: The most that a row's cost may differ between the smallest size and the largest.
MOST_GROWTH = 0.15

INSERT = "insert into public.{0} select * from bench.{0} where id between $1 and $2"
DELETE = "delete from public.appointments where id between $1 and $2"


class Subject:
    """A variant's database; the rows to write stand ready in its schema bench."""

    def __init__(self, connection: Connection, clock: Callable[[], float], variant: str) -> None:
        self._connection = connection
        self._clock = clock
        self._by_hand = variant == "floor"
        self._follows = variant not in ("bare", "none")
        for script in VARIANTS[variant]:
            connection.execute(_text(script))

    def write(self, rows: int) -> dict[str, float]:
        """Seconds of each bulk operation on so many rows; each finds what the one before it left."""
        new = (HISTORY + 1, HISTORY + rows)
        self._reset()
        calls = self._seconds(new, INSERT.format("calls"))
        self._settle()
        linked = self._seconds(new, INSERT.format("appointments"), "link_calls.sql")
        self._expect_linked(rows)
        self._settle()
        delete = self._seconds(new, DELETE, "unlink_calls.sql")
        self._expect_linked(0)
        return {"calls": calls, "linked": linked, "delete": delete}

    def write_singly(self) -> dict[str, float]:
        """Seconds of inserting appointments one by one, each in a transaction and a network trip of its own.

        Once as an application does that does nothing else, once in a session that has planned for bulk inserts.
        """
        return {"single": self._singly(0), "mixed": self._singly(BULKS)}

    def _singly(self, bulks: int) -> float:
        first = HISTORY + 1 + bulks * SINGLES
        self._reset()
        self._seconds((HISTORY + 1, first + SINGLES - 1), INSERT.format("calls"))
        self._settle()
        for start in range(HISTORY + 1, first, SINGLES):
            self._seconds((start, start + SINGLES - 1), INSERT.format("appointments"), "link_calls.sql")
        rows = self._connection.execute(
            "select * from bench.appointments where id between $1 and $2", (first, first + SINGLES - 1)
        ).fetchall()
        statement = sql.SQL("begin; insert into public.appointments values ({}); {} commit")
        by_hand = sql.SQL("execute link_call ({});" if self._by_hand else "")
        statements = [statement.format(sql.SQL(", ").join(row), by_hand.format(row[0])) for row in rows]
        queries = [composed.as_bytes(self._connection) for composed in statements]
        before = self._clock()
        for query in queries:
            self._connection.execute(query)
        seconds = self._clock() - before
        self._expect_linked((bulks + 1) * SINGLES)
        return seconds

    def _seconds(self, span: tuple[int, int], statement: str, by_hand: str | None = None) -> float:
        statements = [statement, _text(by_hand)] if by_hand and self._by_hand else [statement]
        before = self._clock()
        with self._connection.transaction():
            for query in statements:
                self._connection.execute(query, span)
        return self._clock() - before

    def _reset(self) -> None:
        with self._connection.transaction():
            self._connection.execute("set local session_replication_role = replica")  # no triggers
            self._connection.execute("truncate public.calls, public.appointments")
            for table in ("calls", "appointments"):
                self._connection.execute(INSERT.format(table), (1, HISTORY))
        self._settle()

    def _settle(self) -> None:
        self._connection.execute("vacuum (analyze) public.calls, public.appointments")
        self._connection.execute("checkpoint")

    def _expect_linked(self, rows: int) -> None:
        """A variant that did not do its work has measured nothing."""
        found = self._connection.execute(_text("outcome.sql"), (HISTORY,)).fetchone()
        expected = (rows if self._follows else 0, 0)
        if found != expected:
            raise RuntimeError(f"new calls linked, and alerts written: {found} instead of {expected}")


@dataclass(frozen=True)
class Ratio:
    """One variant against another: of the fastest rounds, and the range of the ratios within a round."""

    best: float
    low: float
    high: float

    @classmethod
    def of(cls, ones: Sequence[float], others: Sequence[float]) -> Ratio:
        within = [one / other for one, other in zip(ones, others, strict=True)]
        return cls(min(ones) / min(others), min(within), max(within))

    def __str__(self) -> str:
        return f"{_round(self.best)} ({_round(self.low)}-{_round(self.high)})"


@dataclass
class Result:
    """Seconds of every round, by schema, operation, rows and variant; and what stood on the tables."""

    sizes: Sequence[int]
    seconds: dict[tuple[str, str, int, str], list[float]] = field(default_factory=dict)
    in_force: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, schema: str, rows: int, variant: str, seconds: dict[str, float]) -> None:
        for operation, value in seconds.items():
            self.seconds.setdefault((schema, operation, rows, variant), []).append(value)

    def as_json(self) -> dict[str, Any]:
        return {
            "in_force": self.in_force,
            "measured": [
                {"schema": schema, "operation": operation, "rows": rows, "variant": variant, "seconds": seconds}
                for (schema, operation, rows, variant), seconds in self.seconds.items()
            ],
        }

    def show(self, out: Console) -> None:
        out.print(LEGEND, style="dim")
        for schema, title in SCHEMAS.items():
            out.print(f"\n[bold]{schema}[/bold]: {title}")
            for relation, names in self.in_force[schema].items():
                out.print(Padding(f"{relation}: {', '.join(names)}", (0, 0, 0, 2), style="dim"))
            for name in OPERATIONS:
                out.print(self._table(schema, name))
            self._show_growth(schema, out)
            self._show_own_indexes(schema, out)

    def _table(self, schema: str, name: str) -> Table:
        operation = OPERATIONS[name]
        has_floor = operation.base == "floor"
        table = Table(title=f"\n{operation.title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("rows", justify="right", width=7)
        table.add_column(NAMES[operation.base], justify="right", width=11)
        if has_floor:
            table.add_column(NAMES["none"], justify="right", width=11)
        table.add_column(NAMES["row_level"], justify="right", width=17)
        table.add_column(NAMES["guard"], justify="right", width=17)
        table.add_column(f"<= {operation.most:.2f}" if operation.most else "", width=7)
        if has_floor:
            table.add_column("saving", justify="right")
            table.add_column(f">= {LEAST_SAVING:.1f}" if name == "linked" else "", width=6)
        for rows in operation.sizes or self.sizes:
            base = min(self.seconds[schema, name, rows, operation.base])
            guard = self._ratio(schema, name, rows, "guard", operation.base)
            cells = [
                f"{rows:,}",
                f"{1000 * base:,.1f} ms",
                f"{self._ratio(schema, name, rows, 'none', operation.base).best:.2f}",
                str(self._ratio(schema, name, rows, "row_level", operation.base)),
                str(guard),
                _verdict(guard.best <= operation.most) if operation.most else "",
            ]
            if has_floor:
                saving = self._saving(schema, name, rows, "guard")
                cells.append(f"{saving:.1f} of {self._saving(schema, name, rows, 'floor'):.1f}")
                cells.append(_verdict(saving >= LEAST_SAVING) if name == "linked" else "")
            else:
                del cells[2]
            table.add_row(*cells)
        return table

    def _show_growth(self, schema: str, out: Console) -> None:
        """A row at the largest size against a row at the smallest."""
        small, large = min(self.sizes), max(self.sizes)
        if small == large:
            return
        out.print(f"\n[bold]INSERT linked appointments, cost of a row: {small:,} against {large:,} rows[/bold]")
        for variant in ("none", "floor", "row_level", "guard"):
            costs = [1e6 * min(self.seconds[schema, "linked", rows, variant]) / rows for rows in (small, large)]
            growth = costs[1] / costs[0] - 1
            aim = f"  within {MOST_GROWTH:.0%}: {_verdict(abs(growth) <= MOST_GROWTH)}" if variant == "guard" else ""
            out.print(f"{NAMES[variant]:>11}  {costs[0]:6.1f} us  {costs[1]:6.1f} us  {growth:+5.0%}{aim}")

    def _show_own_indexes(self, schema: str, out: Console) -> None:
        out.print("\n[bold]What guard's indexes and constraints cost: no triggers, with them against without[/bold]")
        for name, operation in OPERATIONS.items():
            if name != "mixed":
                costs = (
                    f"{self._ratio(schema, name, rows, 'none', 'bare').best:.2f} at {rows:,}"
                    for rows in operation.sizes or self.sizes
                )
                out.print(f"{operation.title:44}{',  '.join(costs)}")

    def _ratio(self, schema: str, name: str, rows: int, variant: str, base: str) -> Ratio:
        ones, others = (self.seconds[schema, name, rows, which] for which in (variant, base))
        return Ratio.of(ones, others)

    def _saving(self, schema: str, name: str, rows: int, variant: str) -> float:
        """What row-level triggers add to no triggers, as a multiple of what the variant adds."""
        none, slow, fast = (min(self.seconds[schema, name, rows, which]) for which in ("none", "row_level", variant))
        return (slow - none) / (fast - none)


LEGEND = """\
time       what the session's process on the server computes; the fastest round counts
ratios     to the time on their left; in brackets their range over the rounds
floor      the statement, and one UPDATE of its calls by hand
row-level  the triggers of this system's first design
saving     what row-level triggers add to no triggers, as a multiple of what guard adds; of what the floor adds"""


def _round(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _verdict(met: bool) -> str:
    return "[green]met[/green]" if met else "[red]missed[/red]"


def measure(server: Server, sizes: Sequence[int], progress: Callable[[str], None]) -> Result:
    """Measure every variant on both schemas, at each size."""
    result = Result(sizes)
    for schema in SCHEMAS:
        progress(f"{schema}: making the databases")
        _make_template(server, schema, max(SINGLES * (BULKS + 1), *sizes))
        with ExitStack() as stack:
            subjects = {}
            for variant in VARIANTS:
                server.create(f"{schema}_{variant}", template=schema)
                connection = stack.enter_context(server.connect(f"{schema}_{variant}"))
                subjects[variant] = Subject(connection, server.clock(connection), variant)
            result.in_force[schema] = _in_force(connection)
            for subject in subjects.values():
                subject.write(min(sizes))  # the first is not counted: caches are cold
            for rows in sizes:
                rounds = min(max(ROWS_IN_ALL // rows, FEWEST_ROUNDS), MOST_ROUNDS)
                for number in range(rounds):
                    progress(f"{schema}: {rows:,} rows, round {number + 1} of {rounds}")
                    for variant, subject in _rotated(subjects, number):
                        result.add(schema, rows, variant, subject.write(rows))
            for number in range(FEWEST_ROUNDS):
                progress(f"{schema}: row by row, round {number + 1} of {FEWEST_ROUNDS}")
                for variant, subject in _rotated(subjects, number):
                    result.add(schema, SINGLES, variant, subject.write_singly())
    return result


def _rotated(subjects: dict[str, Subject], number: int) -> list[tuple[str, Subject]]:
    """Each round begins with another variant, so that none always follows the same one."""
    items = list(subjects.items())
    start = number % len(items)
    return items[start:] + items[:start]


def _make_template(server: Server, schema: str, rows: int) -> None:
    server.create(schema)
    if schema == "brownfield":
        with server.connect(schema) as connection:
            connection.execute(LEGACY.read_text())
    server.guard(schema, "apply")
    with server.connect(schema) as connection:
        connection.execute("select guard.set_rule(r.rule, 'correct') from guard.rules as r")
        for table in ("calls", "appointments"):
            connection.execute(f"alter table public.{table} set (autovacuum_enabled = off)")
        connection.execute(_text("rows.sql"))
        connection.execute("call bench.make_rows($1, $2)", (HISTORY, rows))
        for table in ("calls", "appointments"):
            connection.execute(f"alter table bench.{table} add primary key (id)")
        connection.execute("vacuum (analyze)")


def _in_force(connection: Connection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for relation, name in connection.execute(_text("in_force.sql")):
        found.setdefault(relation, []).append(name)
    return found


def _text(name: str) -> str:
    return (HERE / name).read_text()
