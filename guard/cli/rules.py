"""guard audit, guard rules."""

from __future__ import annotations

from pathlib import Path

import click

from guard import audit as auditing
from guard.cli.base import FOUND, State, json_option, pass_state
from guard.cli.schema import own_rules_option

_COLOURS = {"critical": "red", "warning": "yellow", "info": "blue"}


@click.command()
@own_rules_option
@click.option("--app-timezone", metavar="ZONE", help="The zone of local timestamps, where guard is not installed.")
@json_option
@pass_state
def audit(state: State, own_rules: Path | None, app_timezone: str | None) -> None:
    """Count every rule over the whole database, read-only.

    Works on a database that guard has never touched, too. Exit status 2 if anything but info is found.

    \b
    Examples:
      guard audit
      guard --dsn postgresql://reader@db.example/booking audit --json
    """
    with state.connect() as connection:
        result = auditing.run(connection, own_rules, app_timezone)
    if state.as_json:
        state.print_json(result)
    else:
        state.print_table(
            ("rule", "severity", "#violations", "note"),
            [
                (c["rule"], f"[{_COLOURS[c['severity']]}]{c['severity']}", c["violations"], c["note"])
                for c in result["rules"]
            ],
        )
        state.out.print(
            f"\n{result['total_calls']} calls, {result['total_appointments']} appointments, "
            f"{result['consistency_rate_pct']:.2f} % of calls consistent"
        )
    if auditing.violations(result):
        click.get_current_context().exit(FOUND)
