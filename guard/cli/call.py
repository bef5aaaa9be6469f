"""guard call."""

from __future__ import annotations

from datetime import datetime
from itertools import zip_longest
from typing import Any

import click
from rich.text import Text

from guard.cli.base import Row, State, cell, json_option, local_time, pass_state
from guard.errors import GuardError

#: The columns of each list, marked as State.table wants them; one that is empty everywhere is left out.
_COLUMNS = {
    "appointments": (
        "#id",
        "status",
        "#company_id",
        "starts_at",
        "ends_at",
        "?#staff_id",
        "?booking_id",
        "?source",
        "?#call_id",
    ),
    "remote_bookings": ("booking_id", "state", "replaced_by", "?starts_at", "refused", "?event_at"),
    "intents": ("key", "state", "booking_id", "?#appointment_id", "failure_reason", "?updated_at"),
    "validations": ("created_at", "success", "reason", "?#appointment_id", "?#duration_ms"),
    "webhook_events": ("received_at", "source", "event", "booking_id", "action"),
    "pending_checks": ("due_at", "entity"),
    "incidents": ("#id", "severity", "status", "rule", "entity", "?assignee", "?#occurrences", "first_seen_at", "note"),
    "baseline": ("rule", "entity", "marked_at", "cleared_at"),
    "alerts": ("detected_at", "alert_type", "?severity", "entity", "changes"),
    "reviews": ("#id", "#priority", "status", "reason", "assignee", "?created_at", "context", "resolution"),
    "messages": ("created_at", "severity", "kind", "told", "message"),
}
_TITLES = {"baseline": "known since adoption", "intents": "booking intents"}
_MOST = 50
_WIDE = 100


@click.command()
@click.argument("call_id", type=int)
@json_option
@pass_state
def call(state: State, call_id: int) -> None:
    """Show everything known of a call and its appointments; phone numbers are masked.

    Bookings, webhooks, incidents, alerts with the values before, what people are asked, and what was told: of each the
    newest 50.

    \b
    Example:
      guard call 20001
    """
    known = state.query("select guard.call_history(%(id)s::bigint) as known", id=call_id)[0]["known"]
    if known is None:
        raise GuardError(f"There is no call {call_id}.", fix="Give the id of a row of public.calls.")
    if state.as_json:
        state.print_json(known)
        return
    _print_call(state, known["call"])
    for appointment in known["appointments"]:
        for column, expected in (("call_id", call_id), ("company_id", known["call"]["company_id"])):
            if appointment[column] == expected:
                appointment[column] = None
    for name, columns in _COLUMNS.items():
        if known[name]:
            _print_list(state, name, columns, known[name])
    none = [_title(name) for name in _COLUMNS if not known[name]]
    if none:
        state.out.print(Text(f"\nNone: {', '.join(none)}.", style="dim"))


def _print_call(state: State, row: Row) -> None:
    """The call, without what is not known of it, in two columns where there is room."""
    pairs = [
        (Text(name.replace("_", " "), style="bold"), _value(name, value))
        for name, value in row.items()
        if value is not None
    ]
    if state.out.width < _WIDE:
        state.print_table(("", ""), pairs)
        return
    half = (len(pairs) + 1) // 2
    state.print_table(
        ("", "", "", ""),
        [(*left, *right) for left, right in zip_longest(pairs[:half], pairs[half:], fillvalue=("", ""))],
    )


def _print_list(state: State, name: str, columns: tuple[str, ...], rows: list[Row]) -> None:
    for row in rows:
        if "entity_type" in row:
            row["entity"] = f"{row['entity_type']} {row['entity_id']}"
        if name == "messages":
            row["told"] = row["deliveries"] or ("waiting" if row["told_at"] is None else "to no channel")
    shown = [column for column in columns if any(row[column.strip("?#")] is not None for row in rows)]
    title = f"{_title(name)}, the newest {_MOST}" if len(rows) == _MOST else _title(name)
    state.out.print()
    state.print_table(
        [column.removesuffix("_at").removesuffix("_id").replace("_", " ") for column in shown],
        [[_value(column, row[column.strip("?#")]) for column in shown] for row in rows],
        title=title,
    )


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _value(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_at"):
        return local_time(datetime.fromisoformat(value))
    if name == "told" and isinstance(value, list):
        return ", ".join(f"{delivery['channel']} {delivery['status']}" for delivery in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(part)}" for key, part in value.items())
    return cell(value)
