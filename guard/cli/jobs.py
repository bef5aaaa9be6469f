"""guard jobs, tick, scheduler, watch: what guard does by itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import datetime

import click
from rich.text import Text

from guard import cron, database, verify, watch
from guard import jobs as catalogue
from guard.cli.base import FOUND, State, cell, json_option, pass_state
from guard.errors import GuardError
from guard.jobs import Run
from guard.watch import Incident

_COLOURS = {"succeeded": "green", "running": "blue", "failed": "red", "crashed": "red", "skipped": "yellow"}
_SEVERITIES = {"critical": "red", "warning": "yellow", "info": "blue"}

#: How many new incidents the watch prints one by one.
_LINES = 50


@click.group()
def jobs() -> None:
    """See what runs by itself, and run it."""


@jobs.command(name="list")
@json_option
@pass_state
def list_jobs(state: State) -> None:
    """Show every job: when it runs, in UTC, who ran it last, and what became of it.

    \b
    Examples:
      guard jobs list
      guard jobs list --json | jq -r '.[] | select(.status == "failed").job'
    """
    with state.connect() as connection:
        found = catalogue.listing(connection)
        obstacle = cron.obstacle(connection)
    if state.as_json:
        state.print_json(found)
        return
    state.print_table(
        ("job", "schedule", "?run by", "last run", "status", "next run"),
        [
            (
                job["job"],
                job["schedule"] if job["enabled"] else "off",
                "pg_cron" if job["in_pg_cron"] else job["runner"],
                _moment(job["last_run"])[:-3],
                _status(job["status"]),
                _moment(job["next_run"])[:-3],
            )
            for job in found
        ],
    )
    if obstacle:
        state.out.print(f"\n{obstacle}.")
    if not any(job["in_pg_cron"] or job["runner"] not in (None, "manual") for job in found):
        state.out.print(f"\n{verify.NO_SCHEDULER}")


@jobs.command(name="runs")
@click.argument("job", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many at most.")
@json_option
@pass_state
def list_runs(state: State, job: str | None, limit: int) -> None:
    """Show the newest runs, of JOB or of all.

    \b
    Examples:
      guard jobs runs
      guard jobs runs reconcile --limit 5
    """
    with state.connect() as connection:
        found = catalogue.runs(connection, job, limit)
    if state.as_json:
        state.print_json(found)
    elif not found:
        state.out.print("No job has run yet.")
    else:
        state.print_table(
            ("#run", "job", "?by", "started", "?#seconds", "status", "?#steps", "what was done"),
            [
                (
                    run["id"],
                    run["job"],
                    run["runner"],
                    _moment(run["started_at"])[:-3],
                    _seconds(run),
                    _status(run["status"]),
                    run["steps"],
                    _outcome(run),
                )
                for run in found
            ],
        )


@jobs.command(name="run")
@click.argument("job")
@json_option
@pass_state
def run_job(state: State, job: str) -> None:
    """Run JOB now, also if it is switched off; never twice at once. Exit status 2 if it did not succeed.

    \b
    Example:
      guard jobs run detect
    """
    with state.connect() as connection:
        done = catalogue.run(connection, job, "manual")
    if done is None:
        raise GuardError(
            f"The job {job} was not run: it is running already, or the server is a standby.",
            fix=f"guard jobs runs {job} shows its runs.",
        )
    _printer(state)(done)
    if done["status"] != "succeeded":
        click.get_current_context().exit(FOUND)


@click.command(short_help="Run the jobs that are due, and end: for cron.")
@json_option
@pass_state
def tick(state: State) -> None:
    """Run the jobs that are due, and end: for cron, where there is neither pg_cron nor guard scheduler.

    Exit status 2 if one of them did not succeed.

    \b
    Examples:
      guard tick
      * * * * * guard --dsn postgresql://guard@db.example/booking tick
    """
    with state.connect() as connection:
        printer, ran = _printer(state), []

        def report(run: Run) -> None:
            ran.append(run)
            printer(run)

        well = catalogue.tick(connection, report)
    if state.as_json and not ran:
        state.print_json([])
    if not well:
        click.get_current_context().exit(FOUND)


@click.command(short_help="Run the jobs at their times, until stopped.")
@json_option
@pass_state
def scheduler(state: State) -> None:
    """Run the jobs at their times, until stopped; for servers without pg_cron.

    Several may run, on several machines: each job still has each of its turns once. Stopped by SIGTERM or Ctrl-C, it
    waits for what is running.

    \b
    Example:
      guard scheduler
    """
    running = catalogue.Scheduler(database.resolve_dsn(state.dsn), _printer(state), _complainer(state))
    _stop_on_signals(running.stop)
    running.run()


@click.command(name="watch", short_help="Judge what is written as soon as its grace has passed.")
@json_option
@pass_state
def watch_database(state: State) -> None:
    """Judge what is written as soon as its grace has passed, until stopped; print each new incident.

    Several may run: they share the work. It needs a direct connection to hear of writes at once; through a pooler in
    transaction mode it looks once a second.

    \b
    Examples:
      guard watch
      guard watch --json
    """

    def report(new: list[Incident]) -> None:
        if state.as_json:
            for incident in new:
                click.echo(json.dumps(incident, default=str))
            return
        for incident in new[:_LINES]:
            state.out.print(
                Text.assemble(
                    _moment(incident["first_seen_at"]),
                    "  ",
                    (incident["severity"], _SEVERITIES[incident["severity"]]),
                    f"  {incident['rule']}  ",
                    # a description of what has no id says which it is
                    f"{incident['entity_type']} {incident['entity_id']}: " if incident["entity_id"] is not None else "",
                    incident["description"],
                )
            )
        if len(new) > _LINES:
            state.out.print(f"... and {len(new) - _LINES} more: guard incidents list")

    watching = watch.Watch(database.resolve_dsn(state.dsn), report, _complainer(state))
    _stop_on_signals(watching.stop)
    watching.run()


def _stop_on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())


def _complainer(state: State) -> Callable[[GuardError], None]:
    def complain(error: GuardError) -> None:
        state.err.print(f"guard: {' '.join(error.message.split())}")

    return complain


def _printer(state: State) -> Callable[[Run], None]:
    """Prints a run as one line."""

    def report(run: Run) -> None:
        if state.as_json:
            click.echo(json.dumps(run, default=str))
        else:
            state.out.print(
                Text.assemble(
                    f"{_moment(run['started_at'])}  {run['job']}  ",
                    _status(run["status"]),
                    f"  {_seconds(run)} s  {_outcome(run)}",
                )
            )

    return report


def _status(status: str | None) -> Text:
    return Text(status or "", _COLOURS.get(status or "", ""))


def _outcome(run: Run) -> str:
    if run["error"]:
        return run["error"]
    return ", ".join(f"{name.replace('_', ' ')} {cell(value)}" for name, value in (run["result"] or {}).items())


def _seconds(run: Run) -> str:
    return "" if run["finished_at"] is None else f"{(run['finished_at'] - run['started_at']).total_seconds():.2f}"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
