"""guard settings."""

from __future__ import annotations

import click

from guard.cli.base import State, json_option, pass_state


@click.group()
def settings() -> None:
    """See and change the thresholds that guard goes by."""


@settings.command(name="list")
@json_option
@pass_state
def list_settings(state: State) -> None:
    """Show every setting: its value and where that comes from, its unit, its default, its range and its meaning.

    Python's components go by the environment (GUARD_...), else by guard.toml or the file that GUARD_CONFIG names, else
    by the table. SQL functions go by the table; where theirs is another value, it is shown beside.

    \b
    Example:
      guard settings list
    """
    from guard import settings as values  # loads pydantic, which other commands need not wait for

    with state.connect() as connection:
        found = values.listing(connection)
    if state.as_json:
        state.print_json(found)
        return
    state.print_table(
        ("setting", "#value", "?unit", "?#default", "?from", "?#range", "meaning"),
        [
            (
                s["name"],
                s["value"],
                s["unit"],
                s["default"],
                s["origin"] if s["value"] == s["table_value"] else f"{s['origin']} (SQL: {s['table_value']})",
                "" if s["min_value"] is None else f"{s['min_value']} to {s['max_value']}",
                s["description"],
            )
            for s in found
        ],
    )


# -1 is a value, not an option
@settings.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("value")
@json_option
@pass_state
def set_setting(state: State, name: str, value: str) -> None:
    """Set NAME to VALUE in the table, for the whole fleet; it is audited.

    \b
    Examples:
      guard settings set cooldown_seconds 60
      guard settings set per_staff true
    """
    from guard import settings as values  # as above

    with state.connect() as connection:
        changed = values.change(connection, name, value)
    if state.as_json:
        state.print_json(changed)
    else:
        state.out.print(f"{changed['name']} is now {changed['value']} ({changed['unit']}).")
