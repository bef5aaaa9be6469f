"""guard simulate."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from guard import database
from guard import report as reporting
from guard.cli.base import State, json_option, pass_state
from guard.simulation.runs import MODES, Result, Simulation, run
from guard.simulation.stream import FAULTS, Stream

_COLOURS = {True: "green", False: "red", None: ""}


def _is_number(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("nan is not a share of the calls.")
    return value


@click.command(short_help="Show what guard would change, on faults of its own.")
@click.option("--calls", type=click.IntRange(1, 1_000_000), default=2000, show_default=True, metavar="N")
@click.option(
    "--fault-rate",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    callback=_is_number,
    help="The share of the calls that something goes wrong with.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, metavar="N", help="Decides data and faults."
)
@click.option("--sessions", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N", help="At once.")
@click.option(
    "--guard",
    "modes",
    multiple=True,
    type=click.Choice(MODES),
    default=("off", "correct"),
    show_default="off and correct",
    help="The mode of all rules; given several times, the modes stand side by side.",
)
@json_option
@pass_state
def simulate(state: State, calls: int, fault_rate: float, seed: int, sessions: int, modes: tuple[str, ...]) -> None:
    """Show what guard would change: play calls and bookings with faults in them, without guard and with it.

    It works in databases of its own on the same server, and drops them at the end, also after Ctrl-C; no other
    database is touched. The seed decides every call and every fault; in which order sessions come to write is left
    to chance. The role needs CREATEDB and CREATEROLE.

    \b
    Examples:
      guard simulate
      guard simulate --calls 5000 --fault-rate 0.26 --guard enforce
      guard simulate --guard off --guard observe --guard correct --guard enforce
    """
    stream = Stream(calls, fault_rate, seed, sessions)
    with (
        _ended_by_signals(),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=state.err,
            transient=True,
            disable=not state.err.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("installing guard", total=None)
        result = run(
            database.resolve_dsn(state.dsn),
            stream,
            modes,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if state.as_json:
        given = {"calls": calls, "fault_rate": fault_rate, "seed": seed, "sessions": sessions}
        state.print_json({**given, **result})
    else:
        show(state, stream, result)


def show(state: State, stream: Stream, result: Simulation) -> None:
    """Print what was played and what came of it."""
    faults = {fault: count for fault, count in result["faults"].items() if count}
    state.out.print(
        f"{stream.calls} calls in {stream.sessions} sessions, {sum(faults.values())} of them with a fault; "
        f"seed {stream.seed}"
    )
    if faults:
        state.out.print()
        state.print_table(
            ("what went wrong", "#calls", "rules that it breaks"),
            [(fault, count, "\n".join(FAULTS[fault])) for fault, count in faults.items()],
        )
    _print_rules(state, result["runs"])
    _print_summary(state, result["runs"])
    _print_kpis(state, result["runs"])


def _print_rules(state: State, results: list[Result]) -> None:
    """Violations by rule and mode; what guard did about the others, where there is room: for one mode."""
    detailed = [result["guard"] != "off" for result in results]
    if sum(detailed) > 1:
        detailed = [False] * len(results)
    columns = ["rule"]
    # what is info is a fact, and no violation
    judged = [[rule for rule in result["rules"] if rule["severity"] != "info"] for result in results]
    rows: list[list[object]] = [[rule["rule"]] for rule in judged[0]]
    for result, found, is_detailed in zip(results, judged, detailed, strict=True):
        columns += [f"#{result['guard']}", *(["#repaired", "#refused", "#for a person"] if is_detailed else [])]
        for row, rule in zip(rows, found, strict=True):
            row += [rule["violations"], *((rule["repaired"], rule["refused"], rule["queued"]) if is_detailed else ())]
    modes = " and ".join(_title(result) for result in results)
    others = ", and what became of the others" if any(detailed) else ""
    state.out.print(f"\nViolations that stand at the end, {modes}{others}:\n")
    state.print_table(columns, rows)
    if any(detailed):
        state.out.print("What was neither repaired nor refused never came to be: calls follow their appointments.")


def _print_summary(state: State, results: list[Result]) -> None:
    lines: list[tuple[str, list[str]]] = [
        ("calls consistent", [f"{r['consistency_rate_pct']:.2f} %" for r in results]),
        ("violations", [str(r["violations"]) for r in results]),
        ("repaired", [str(r["repaired"]) for r in results]),
        ("refused", [str(r["refused"]) for r in results]),
        ("webhooks known already", [str(r["webhooks_recognised"]) for r in results]),
        ("for a person to decide", [str(r["queued"]) for r in results]),
        ("found by detection", [str(r["detected"]) for r in results]),
        ("  after, on average", [_seconds(r["detection_mean_seconds"]) for r in results]),
        ("  after, 95 % of them", [_seconds(r["detection_p95_seconds"]) for r in results]),
        ("calls per second", [f"{r['calls_per_second']:.0f}" for r in results]),
        ("  as a share of the first", [_ratio(r) for r in results]),
        ("  in half of its parts", [_quartiles(r) for r in results]),
    ]
    state.out.print()
    state.print_table(
        ("guard", *(f"#{result['guard']}" for result in results)),
        [(name, *values) for name, values in lines if any(values)],
    )


def _print_kpis(state: State, results: list[Result]) -> None:
    """The KPIs that any of the runs has rows for."""
    rows = [
        (
            of_kpi[0]["kpi"],
            f"{of_kpi[0]['comparison']} {reporting.amount(of_kpi[0]['target'], of_kpi[0]['unit'])}",
            *(Text(reporting.amount(kpi["value"], kpi["unit"]), _COLOURS[kpi["met"]]) for kpi in of_kpi),
        )
        for of_kpi in zip(*(result["kpis"] for result in results), strict=True)
        if any(kpi["value"] is not None for kpi in of_kpi)
    ]
    state.out.print()
    state.print_table(("kpi", "#target", *(f"#{result['guard']}" for result in results)), rows)


def _title(result: Result) -> str:
    return "without guard" if result["guard"] == "off" else f"with guard at {result['guard']}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _ratio(result: Result) -> str:
    return "" if result["throughput"] is None else f"{result['throughput']['ratio']:.2f}"


def _quartiles(result: Result) -> str:
    return "" if result["throughput"] is None else "{low:.2f} to {high:.2f}".format(**result["throughput"])


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on Ctrl-C: with the databases dropped."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
