"""guard audit, guard rules."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from guard import audit as auditing
from guard import database
from guard import rules as registry
from guard.cli.base import FOUND, State, json_option, pass_state
from guard.cli.schema import described, own_rules_option
from guard.plan import TableLock

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
            [(c["rule"], _coloured(c["severity"]), c["violations"], c["note"]) for c in result["rules"]],
        )
        rate = result["consistency_rate_pct"]
        unasked = sum(c["violations"] is None for c in result["rules"])
        state.out.print(
            f"\n{result['total_calls']} calls, {result['total_appointments']} appointments, "
            + ("how many calls are consistent is not known" if rate is None else f"{rate:.2f} % of calls consistent")
            + (f"; {unasked} of {len(result['rules'])} rules could not be asked" if unasked else "")
        )
    if auditing.violations(result):
        click.get_current_context().exit(FOUND)


def _coloured(severity: str) -> Text:
    return Text(severity, _COLOURS[severity])


@click.group(name="rules", short_help="List the rules, and move them on the ladder.")
def rules() -> None:
    """List the rules, and move them on the ladder: off, observe, correct, enforce."""


@rules.command(name="list")
@json_option
@pass_state
def list_rules(state: State) -> None:
    """Show every rule with its mode, its rollout and the state of its constraint.

    \b
    Example:
      guard rules list
    """
    with state.connect() as connection:
        found = registry.listing(connection)
    if state.as_json:
        state.print_json(found)
        return
    state.print_table(
        ("rule", "severity", "mode", "#rollout", "constraint"),
        [
            (
                r["rule"],
                _coloured(r["severity"]),
                r["mode"],
                f"{r['rollout_pct']} %",
                r["constraint"] or "-",
            )
            for r in found
        ],
    )


@rules.command(name="show")
@click.argument("rule")
@json_option
@pass_state
def show_rule(state: State, rule: str) -> None:
    """Show what RULE says is wrong, how it is repaired, and what a person can do.

    \b
    Example:
      guard rules show missing_appointment
    """
    with state.connect() as connection:
        found = registry.details(connection, rule)
    state.print_record(dict(found))


@rules.command(name="set")
@click.argument("rule")
@click.option("--mode", required=True, type=click.Choice(["off", "observe", "correct", "enforce"]))
@click.option(
    "--rollout",
    type=click.IntRange(0, 100),
    default=100,
    show_default=True,
    help="Percent of calls, by hash of the id; the others get the rung below.",
)
@click.option(
    "--build-exclude",
    is_flag=True,
    help="Build the rule's EXCLUDE constraint although guard did not make the table: nobody reads it meanwhile.",
)
@json_option
@pass_state
def set_rule(state: State, rule: str, mode: str, rollout: int, build_exclude: bool) -> None:
    """Move RULE to a mode; it takes effect with the next statement, without DDL, and is audited.

    At enforce, and at correct with 100 %, the rule's table constraint is installed and validated too, if no row stands
    in the way. Exit status 2 if rows do. Writers go on meanwhile, but for an EXCLUDE constraint, which locks out
    readers too while it is built: on tables that guard found, overlapping_appointment does without, until you ask.

    \b
    Examples:
      guard rules set missing_direction --mode correct --rollout 10
      guard rules set missing_direction --mode enforce
      guard rules set overlapping_appointment --mode enforce --build-exclude
    """

    def announce(lock: TableLock) -> None:
        state.err.print(Text.assemble("Building the EXCLUDE constraint takes ", *described(lock)))

    result = registry.move(
        database.resolve_dsn(state.dsn), rule, mode, rollout, build_exclude=build_exclude, announce=announce
    )
    if state.as_json:
        state.print_json(result)
    else:
        others = registry.RUNG_BELOW[mode]
        if rollout == 100 or others == mode:
            stands = mode
        elif rollout == 0:
            stands = f"{others}: {mode} is rolled out to no call yet"
        else:
            stands = f"{mode} for {rollout} % of calls, and at {others} for the others"
        state.out.print(f"{rule} now stands at {stands}.")
        if result["message"]:
            state.out.print(result["message"])
    if result["violations"]:
        click.get_current_context().exit(FOUND)
