"""guard report, guard kpis, guard views."""

from __future__ import annotations

from datetime import datetime
from typing import TextIO

import click
from rich.text import Text

from guard import report as reporting
from guard.cli.base import FOUND, State, json_option, pass_state, past_as_written

_COLOURS = {"met": "green", "missed": "red", "not measured": "dim"}


@click.command(short_help="Print the report of a day.")
@click.option(
    "--date",
    "day",
    default="yesterday",
    show_default=True,
    metavar="DATE",
    help="2026-01-31, today or yesterday, in the application's time zone.",
)
@click.option("--format", "form", type=click.Choice(list(reporting.FORMATS)), show_default="text", help="How.")
@click.option(
    "--output", type=click.File("w", encoding="utf-8", atomic=True), default="-", help="A file to write it to."
)
@click.option("--refresh", is_flag=True, help="Make it anew: what was repaired since no longer stands.")
@json_option
@pass_state
def report(state: State, day: str, form: str | None, output: TextIO, refresh: bool) -> None:
    """Print the report of a day; it is made and stored if that has not been done yet.

    The HTML page needs no other file and no network. JUnit has a case for each rule and each KPI.

    \b
    Examples:
      guard report
      guard report --date today --format html --output report.html
      guard report --date 2026-01-31 --format junit --refresh
    """
    if state.as_json:
        if form not in (None, "json"):
            raise click.UsageError(f"--json is one format and --format {form} another.")
        form = "json"
    with state.connect() as connection:
        made = reporting.get(connection, day, refresh=refresh)
    output.write(reporting.FORMATS[form or "text"](made))


@click.command()
@click.option(
    "--from",
    "starts",
    type=past_as_written,
    metavar="TIME",
    help="2026-01-31, 2026-01-31T08:00+01:00, or how long ago: 2h, 3d.",
)
@click.option("--to", "ends", type=past_as_written, metavar="TIME", help="Now unless given.")
@click.option(
    "--days", type=click.IntRange(1, 3660), default=1, show_default=True, help="How long, where --from is not given."
)
@click.option("--company", type=int, metavar="ID", help="One company only.")
@json_option
@pass_state
def kpis(state: State, starts: datetime | None, ends: datetime | None, days: int, company: int | None) -> None:
    """Measure the KPIs. Exit status 2 if a target is missed; what has no rows is not measured, and not missed.

    Times without a zone are in the application's time zone. --json has the query behind each value.

    \b
    Examples:
      guard kpis --days 7
      guard kpis --from 2026-01-01 --to 2026-02-01 --company 7 --json
    """
    with state.connect() as connection:
        found = reporting.kpis(connection, starts, ends, days, company)
    if state.as_json:
        state.print_json([{**k, "target": float(k["target"]), "value": _number(k["value"])} for k in found])
    else:
        state.print_table(
            ("kpi", "#measured", "#target", "verdict", "#rows"),
            [
                (
                    k["kpi"],
                    reporting.measured(k),
                    f"{k['comparison']} {reporting.amount(k['target'], k['unit'])}",
                    Text(reporting.verdict(k), _COLOURS[reporting.verdict(k)]),
                    k["rows_behind"],
                )
                for k in found
            ],
        )
    if any(k["met"] is False for k in found):
        click.get_current_context().exit(FOUND)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


@click.command(short_help="List the views for BI tools, or the columns of one.")
@click.argument("view", required=False)
@json_option
@pass_state
def views(state: State, view: str | None) -> None:
    """List the views for BI tools with their comments, or the columns of VIEW.

    \b
    Examples:
      guard views
      guard views call_consistency
      guard views --json
    """
    with state.connect() as connection:
        found = reporting.views(connection, view)
    if state.as_json:
        state.print_json(found)
    elif view is None:
        state.print_table(("view", "comment"), [(v["view"], v["comment"]) for v in found])
    else:
        state.out.print(f"{found[0]['view']}: {found[0]['comment']}\n")
        state.print_table(
            ("column", "type", "comment"), [(c["column"], c["type"], c["comment"]) for c in found[0]["columns"]]
        )
