"""The `guard` command: it parses and prints, the logic is elsewhere."""

from __future__ import annotations

import os

import click

from guard.cli import breaker, call, incidents, jobs, notify, report, review, rules, schema, server, settings, simulate
from guard.cli.base import GuardGroup, State


@click.group(
    cls=GuardGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 fine, 1 guard failed or was used wrongly, 2 violations or drift found.",
)
@click.option("--dsn", envvar="GUARD_DSN", metavar="DSN", help="The database, as a libpq connection string.")
@click.option("--redis-url", envvar="GUARD_REDIS_URL", metavar="URL", help="The Redis that circuits live in, if any.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="booking-guard", prog_name="guard")
@click.pass_context
def main(context: click.Context, dsn: str | None, redis_url: str | None, as_json: bool, debug: bool) -> None:
    """Keep a booking database true.

    Commands work on --dsn (or GUARD_DSN), else on the server that libpq's PG* variables name, else on the
    embedded server that `guard up` starts.
    """
    # local timestamps are in the server's zone, whatever the zone of this terminal
    os.environ.pop("PGTZ", None)
    context.obj = State(dsn=dsn, as_json=as_json, debug=debug, redis_url=redis_url)


for command in (
    server.up,
    server.down,
    server.status,
    rules.audit,
    schema.plan,
    schema.apply,
    schema.verify,
    schema.rollback,
    rules.rules,
    incidents.incidents,
    incidents.reconcile,
    incidents.undo,
    settings.settings,
    breaker.breaker,
    notify.notify,
    review.review,
    review.intents,
    call.call,
    jobs.jobs,
    jobs.tick,
    jobs.scheduler,
    jobs.watch_database,
    report.report,
    report.kpis,
    report.views,
    simulate.simulate,
):
    main.add_command(command)
