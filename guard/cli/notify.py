"""guard notify."""

from __future__ import annotations

import os
import time
from dataclasses import asdict

import click
import psycopg

from guard import notify as outbox
from guard.cli.base import State, json_option, pass_state
from guard.errors import NoChannelError, from_database


@click.command(short_help="Deliver the outbox to the channels: Slack, e-mail, webhooks.")
@click.option("--follow", is_flag=True, help="Go on delivering, until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=5,
    show_default=True,
    help="With --follow: seconds between runs.",
)
@click.option("--list", "listing", is_flag=True, help="Show what was not delivered, and deliver nothing.")
@click.option("--requeue", metavar="ID|all", help="Have a delivery that was given up tried again, or all of them.")
@click.option("--discard", type=int, metavar="ID", help="Let a delivery go that nobody needs any more.")
@json_option
@pass_state
def notify(state: State, follow: bool, every: float, listing: bool, requeue: str | None, discard: int | None) -> None:
    """Deliver the outbox to the channels: Slack, e-mail, webhooks, whatever apprise knows.

    GUARD_CHANNELS holds their addresses, separated by spaces or commas; GUARD_CHANNELS_FILE names a file with one a
    line. Critical findings go at once, one message for each kind; warnings as a digest. What fails is tried again
    after 1, 2, 4 ... 60 minutes. Several senders may run at once; give all of them the same channels. Exit status 1 if
    a channel failed.

    \b
    Examples:
      GUARD_CHANNELS="slack://TOKEN/#alerts mailtos://USER:PASSWORD@example.com" guard notify
      GUARD_CHANNELS_FILE=/etc/guard/channels guard notify --follow
      guard notify --list
      guard notify --requeue all
    """
    if sum((follow, listing, requeue is not None, discard is not None)) > 1:
        raise click.UsageError("Give one of --follow, --list, --requeue and --discard.")
    if listing:
        _list(state)
    elif requeue is not None:
        _requeue(state, requeue)
    elif discard is not None:
        with state.connect() as connection:
            connection.execute("select guard.discard_delivery(%s)", (discard,))
        if state.as_json:
            state.print_json({"discarded": discard})
        else:
            state.out.print(f"Delivery {discard} is discarded.")
    else:
        _deliver(state, every if follow else None)


def _deliver(state: State, every: float | None) -> None:
    try:
        channels = outbox.channels(os.environ)
    except NoChannelError as error:
        with state.connect() as connection:
            raise NoChannelError(f"No channel is configured; {_events(outbox.waiting(connection))} for one.") from error
    outcomes = outbox.deliver(state.connect, channels)
    _report(state, outcomes, quiet=False)
    while every is not None:
        try:
            time.sleep(every)
            _report(state, outbox.deliver(state.connect, channels), quiet=True)
        except psycopg.OperationalError as error:  # the database is restarted, say
            state.err.print(f"guard: {from_database(error).message} Trying again.")
        except KeyboardInterrupt:
            return
    if any(outcome.error for outcome in outcomes):
        click.get_current_context().exit(1)


def _report(state: State, outcomes: list[outbox.Outcome], *, quiet: bool) -> None:
    if quiet and not any(outcome.sent or outcome.failed for outcome in outcomes):
        return
    if state.as_json:
        state.print_json([asdict(outcome) for outcome in outcomes])
    else:
        state.print_table(
            ("channel", "#sent", "#failed", "error"), [(o.channel, o.sent, o.failed, o.error) for o in outcomes]
        )


def _list(state: State) -> None:
    with state.connect() as connection:
        found, waiting = outbox.undelivered(connection), outbox.waiting(connection)
    if state.as_json:
        state.print_json({"waiting": waiting, "deliveries": found})
        return
    if found:
        state.print_table(
            ("#id", "status", "channel", "title", "?#attempts", "?next", "error"),
            [
                (
                    row["id"],
                    row["status"],
                    row["channel"],
                    row["title"],
                    row["attempts"],
                    row["next_attempt_at"] and f"{row['next_attempt_at'].astimezone():%H:%M:%S}",
                    row["last_error"],
                )
                for row in found
            ],
        )
    else:
        state.out.print("Every message was delivered.")
    if waiting:
        state.out.print(f"{_events(waiting)} for a digest, a throttle, or the next run.")


def _requeue(state: State, which: str) -> None:
    if which != "all" and not which.isdecimal():
        raise click.BadParameter("give the id of a delivery, or all.", param_hint="--requeue")
    with state.connect() as connection:
        row = connection.execute(
            "select guard.requeue_deliveries(%s)", (None if which == "all" else int(which),)
        ).fetchone()
    count = row[0] if row else 0
    if state.as_json:
        state.print_json({"requeued": count})
    else:
        state.out.print(f"{count} {'delivery is' if count == 1 else 'deliveries are'} tried again with the next run.")


def _events(count: int) -> str:
    return f"{count} {'event waits' if count == 1 else 'events wait'}"
