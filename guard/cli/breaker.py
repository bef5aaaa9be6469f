"""guard breaker."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guard import circuits, database
from guard.circuits import Circuit
from guard.cli.base import Row, State, json_option, pass_state
from guard.stores.fallback import FallbackStore

_COLOURS = {"closed": "green", "open": "red", "half_open": "yellow"}

reason_option = click.option("--reason", required=True, help="Why; it is kept in the audit log.")


@contextmanager
def _opened(state: State) -> Iterator[tuple[database.Connection, FallbackStore]]:
    dsn = database.resolve_dsn(state.dsn)
    with state.connect() as connection, circuits.stores(dsn, state.redis_url) as store:
        yield connection, store


@click.group(name="breaker", short_help="See the circuits, and force them open or closed.")
def breaker() -> None:
    """See the circuits, and force them open or closed for the whole fleet."""


@breaker.command(name="list")
@json_option
@pass_state
def list_circuits(state: State) -> None:
    """Show every circuit, those that are not closed first.

    \b
    Examples:
      guard breaker list
      guard breaker list --json | jq -r '.[] | select(.state != "closed").circuit_key'
    """
    with _opened(state) as (connection, store):
        found = circuits.listing(connection, store)
    if state.as_json:
        state.print_json(found)
    elif found:
        state.out.print(_table(state, found))
    else:
        state.out.print("No circuit has failed or reported yet.")


@breaker.command(name="show")
@click.argument("key")
@json_option
@pass_state
def show(state: State, key: str) -> None:
    """Show the circuit KEY, and what was counted in the last hour.

    \b
    Example:
      guard breaker show appointment_booking:service:7
    """
    with _opened(state) as (connection, store):
        circuit, counts = circuits.details(connection, store, key)
    if state.as_json:
        state.print_json({**circuit, "last_hour": counts})
        return
    rows: Row = {
        "circuit": circuit["circuit_key"],
        "state": (circuit["override"] or circuit["state"]) + (" (probing)" if circuit["probing"] else ""),
        "again_in": _again(circuit) or None,
        "forced_because": circuit["override_reason"],
    }
    told = ("circuit_key", "state", "probing", "retry_after_seconds", "override", "override_reason", "metadata")
    rows |= {name: value for name, value in circuit.items() if name not in told}
    rows |= {f"last {name}": value for name, value in circuit["metadata"].items()}
    rows |= {f"{name} in the last hour": value for name, value in counts.items()}
    state.print_record(rows)


@breaker.command(name="events")
@click.argument("key")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many at most.")
@json_option
@pass_state
def events(state: State, key: str, limit: int) -> None:
    """Show what became of the circuit KEY, the newest first: who reported it, and which error.

    \b
    Example:
      guard breaker events appointment_booking:service:7 --limit 5
    """
    with state.connect() as connection:
        found = circuits.events(connection, key, limit)
    if state.as_json:
        state.print_json(found)
        return
    state.print_table(
        ("when", "event", "from", "to", "error", "?node", "?store", "?#generation"),
        [
            (
                _moment(e["created_at"]),
                e["event"],
                e["from_state"],
                e["to_state"],
                e["error_class"],
                e["node"],
                e["store"],
                e["generation"],
            )
            for e in found
        ],
    )


@breaker.command(name="open")
@click.argument("key")
@reason_option
@json_option
@pass_state
def force_open(state: State, key: str, reason: str) -> None:
    """Force the circuit KEY open: every call fails at once, until it is reset.

    \b
    Example:
      guard breaker open appointment_booking:global --reason "calendar under maintenance"
    """
    _override(state, key, "forced_open", reason)


@breaker.command(name="close")
@click.argument("key")
@reason_option
@json_option
@pass_state
def force_closed(state: State, key: str, reason: str) -> None:
    """Force the circuit KEY closed: every call passes, whatever fails, until it is reset.

    \b
    Example:
      guard breaker close appointment_booking:service:7 --reason "false alarm, see ticket 12"
    """
    _override(state, key, "forced_closed", reason)


@breaker.command(name="reset")
@click.argument("key")
@click.option("--reason", default="reset", show_default=True, help="Why; it is kept in the audit log.")
@json_option
@pass_state
def reset(state: State, key: str, reason: str) -> None:
    """Lift what was forced on the circuit KEY, and start afresh: closed, nothing counted.

    \b
    Example:
      guard breaker reset appointment_booking:service:7
    """
    _override(state, key, "none", reason)


@breaker.command(name="watch")
@click.option("--every", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--times", type=click.IntRange(1), help="How often to look; without it, until Ctrl-C.")
@json_option
@pass_state
def watch(state: State, every: float, times: int | None) -> None:
    """Show the circuits and keep showing them. With --json: one line of JSON each time.

    \b
    Examples:
      guard breaker watch
      guard breaker watch --every 5 --json
    """
    looks = 0
    with _opened(state) as (connection, store), Live(console=state.out, auto_refresh=False) as live:
        while True:
            found = circuits.listing(connection, store)
            if state.as_json:
                click.echo(json.dumps(found, default=str))
            elif state.out.is_terminal:
                live.update(_table(state, found), refresh=True)
            else:
                state.out.print(_table(state, found))
            looks += 1
            if looks == times or state.out.quiet:
                return
            try:
                time.sleep(every)
            except KeyboardInterrupt:
                return


def _override(state: State, key: str, override: str, reason: str) -> None:
    with _opened(state) as (connection, store):
        after, was_known = circuits.override(connection, store, key, override, reason)
    if state.as_json:
        state.print_json(
            {
                "circuit_key": key,
                "state": after.shown_state,
                "generation": after.generation,
                "was_known": was_known,
            }
        )
        return
    said = f"{key} is {after.shown_state.replace('_', ' ')}."
    if was_known:
        state.out.print(said)
    else:
        state.out.print(
            f"{said} It was unknown until now: if the key is wrong, guard breaker reset {shlex.quote(key)} lifts this."
        )


def _table(state: State, found: Sequence[Circuit]) -> Table:
    return state.table(
        ("circuit", "state", "?#failures", "again in", "?last error", "?opened", "?#successes", "?node"),
        [
            (
                c["circuit_key"],
                Text(c["override"] or c["state"], _COLOURS[c["state"]]) + (" (probing)" if c["probing"] else ""),
                c["failure_count"],
                _again(c),
                c["metadata"].get("error_class"),
                _moment(c["opened_at"])[:-3],
                c["success_count"],
                c["metadata"].get("node"),
            )
            for c in found
        ],
    )


def _again(circuit: Circuit) -> str:
    if circuit["override"] == "forced_open":
        return "until reset"
    seconds = circuit["retry_after_seconds"]
    return "" if seconds is None else f"{seconds:.0f} s"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
