"""guard review, guard intents: what support staff work with."""

from __future__ import annotations

import getpass
import os
import pkgutil
import sys

import click

from guard import booking
from guard.cli.base import FOUND, State, json_option, local_minute, pass_state
from guard.errors import GuardError


@click.group()
def review() -> None:
    """Work the queue of what a person must decide."""


@review.command(name="list")
@click.option("--status", type=click.Choice(["pending", "in_progress", "resolved", "all"]), default="pending")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@pass_state
def list_items(state: State, status: str, limit: int) -> None:
    """List items, the most urgent first.

    \b
    Examples:
      guard review list
      guard review list --status in_progress --json
    """
    rows = state.query(
        """
        select q.id, q.priority, q.status, q.reason, q.call_id, q.assignee, q.created_at
        from guard.manual_review_queue as q
        where %(status)s in (q.status, 'all')
        order by q.priority, q.created_at, q.id
        limit %(limit)s
        """,
        status=status,
        limit=limit,
    )
    if state.as_json:
        state.print_json(rows)
    elif not rows:
        state.out.print("Nothing is waiting." if status == "pending" else "Nothing found.")
    else:
        state.print_table(
            ("#id", "#priority", "status", "reason", "#call", "?assignee", "since"),
            [
                (
                    r["id"],
                    r["priority"],
                    r["status"],
                    r["reason"],
                    r["call_id"],
                    r["assignee"],
                    local_minute(r["created_at"]),
                )
                for r in rows
            ],
        )


@review.command()
@click.argument("item", type=int)
@json_option
@pass_state
def show(state: State, item: int) -> None:
    """Show ITEM with all that is known about it; where a rule is the reason, with what to do.

    \b
    Example:
      guard review show 17
    """
    rows = state.query(
        """
        select q.*, r.description, r.runbook
        from guard.manual_review_queue as q
        left join guard.rules as r on q.reason = r.rule
        where q.id = %(id)s
        """,
        id=item,
    )
    if not rows:
        raise GuardError(f"There is no review item {item}.", fix="guard review list shows them.")
    state.print_record(rows[0])


@review.command()
@click.option("--as", "assignee", metavar="NAME", help="Who takes it; your login name unless given.")
@json_option
@pass_state
def take(state: State, assignee: str | None) -> None:
    """Take the most urgent item; nobody else gets it.

    \b
    Example:
      guard review take --as ann
    """
    rows = state.query(
        """
        select q.*, r.description, r.runbook
        from guard.take_review(%(assignee)s) as q
        left join guard.rules as r on q.reason = r.rule
        """,
        assignee=getpass.getuser() if assignee is None else assignee,
    )
    if rows:
        state.print_record(rows[0])
    elif state.as_json:
        state.print_json(None)
    else:
        state.out.print("Nothing is waiting.")


@review.command()
@click.argument("item", type=int)
@click.argument("resolution")
@json_option
@pass_state
def resolve(state: State, item: int, resolution: str) -> None:
    """Close ITEM, saying in RESOLUTION what was done.

    \b
    Example:
      guard review resolve 17 "called the customer, booked again"
    """
    state.print_record(state.query("select * from guard.resolve_review(%(id)s, %(how)s)", id=item, how=resolution)[0])


@review.command()
@click.argument("item", type=int)
@json_option
@pass_state
def release(state: State, item: int) -> None:
    """Give ITEM back, for somebody else to take.

    \b
    Example:
      guard review release 17
    """
    state.print_record(state.query("select * from guard.release_review(%(id)s)", id=item)[0])


@click.group(short_help="Bookings that were begun, and how far they came.")
def intents() -> None:
    """Bookings that were begun: how far they came, and what died on the way."""


@intents.command(name="list")
@click.option("--all", "everything", is_flag=True, help="Those that are done, too.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@pass_state
def list_intents(state: State, everything: bool, limit: int) -> None:
    """List bookings that are not done, the oldest first.

    \b
    Examples:
      guard intents list
      guard intents list --all --json
    """
    rows = state.query(
        """
        select i.id, i.key, i.call_id, i.state, i.booking_id, i.appointment_id, i.failure_reason, i.updated_at
        from guard.booking_intents as i
        where %(everything)s or i.state in ('started', 'remote_booked', 'recorded')
        order by i.updated_at, i.id
        limit %(limit)s
        """,
        everything=everything,
        limit=limit,
    )
    if state.as_json:
        state.print_json(rows)
    elif not rows:
        state.out.print("No booking is under way.")
    else:
        state.print_table(
            ("#id", "key", "#call", "state", "?remote booking", "?#appointment", "since"),
            [
                (
                    r["id"],
                    r["key"],
                    r["call_id"],
                    r["state"],
                    r["booking_id"],
                    r["appointment_id"],
                    local_minute(r["updated_at"]),
                )
                for r in rows
            ],
        )


@intents.command(name="recover")
@click.option("--older-than", "seconds", type=click.FloatRange(min=0), default=60, show_default=True, metavar="SECONDS")
@click.option(
    "--ask",
    metavar="MODULE:FUNCTION",
    help="Asks the calendar: gets an idempotency key, returns the id of its booking, or None if there is none.",
)
@json_option
@pass_state
def recover_intents(state: State, seconds: float, ask: str | None) -> None:
    """Clear up bookings that have not moved for a while: record them, or queue them for a person.

    What --ask raises is logged, and that booking left for the next time: ask_failed, exit status 2.

    \b
    Examples:
      guard intents recover --older-than 300
      guard intents recover --ask gateway.calendar:find_booking
    """
    function = None if ask is None else _imported(ask)
    with state.connect() as connection:
        recovered = booking.recover(connection, seconds, function)
    if state.as_json:
        state.print_json([{"key": key, "state": to, "action": action} for key, to, action in recovered])
    elif not recovered:
        state.out.print("Nothing to recover.")
    else:
        state.print_table(("key", "state", "action"), recovered)
    if any(action == "ask_failed" for _, _, action in recovered):
        click.get_current_context().exit(FOUND)


def _imported(name: str) -> booking.Ask:
    """The function that `name` says, of a module in the working folder or installed."""
    sys.path.insert(0, os.getcwd())
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # a module can raise anything
        raise GuardError(
            f"{name} cannot be loaded: {type(error).__name__}: {error}",
            fix="Name a function as package.module:function, from the folder that the package is in.",
        ) from error
    if not callable(found):
        raise GuardError(f"{name} is no function.", fix="Name a function that takes an idempotency key.")
    return found  # type: ignore[no-any-return]  # what it is cannot be known before it is called
