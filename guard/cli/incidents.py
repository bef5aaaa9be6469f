"""guard incidents, guard reconcile, guard undo: what stands open, repairing it, taking that back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from guard import reconcile as reconciliation
from guard import verify
from guard.cli.base import FOUND, Row, State, future, json_option, local_minute, local_time, pass_state, past
from guard.errors import GuardError


@click.group(short_help="What is wrong now, and what became of it.")
def incidents() -> None:
    """What is wrong now: one incident per defect, until the defect is gone."""


@incidents.command(name="list")
@click.option(
    "--status",
    type=click.Choice(["standing", "open", "acknowledged", "snoozed", "resolved", "all"]),
    default="standing",
    show_default=True,
    help="standing: all but resolved.",
)
@click.option("--rule", metavar="RULE", help="Only those of one rule.")
@click.option("--company", type=int, metavar="ID", help="Only those of one company.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@pass_state
def list_incidents(state: State, status: str, rule: str | None, company: int | None, limit: int) -> None:
    """List incidents, the gravest and newest first.

    \b
    Examples:
      guard incidents list
      guard incidents list --rule missing_appointment --status all --json
    """
    if rule is not None:
        _require_rule(state, rule)
    if company is not None:
        _require_company(state, company)
    rows = state.query(
        """
        select
            i.id, i.severity, i.status, i.rule, i.entity_type, i.entity_id,
            case when i.entity_id is null then i.details ->> 'subject' end as subject,
            i.company_id, i.occurrences, i.assignee, i.first_seen_at, i.last_seen_at, i.description,
            count(*) over () as total
        from guard.incidents as i
        where
            (%(status)s in (i.status, 'all') or (%(status)s = 'standing' and i.status <> 'resolved'))
            and i.rule = coalesce(%(rule)s, i.rule)
            and (%(company)s::bigint is null or i.company_id = %(company)s)
        order by array_position(array['critical', 'warning', 'info'], i.severity), i.first_seen_at desc, i.id
        limit %(limit)s
        """,
        status=status,
        rule=rule,
        company=company,
        limit=limit,
    )
    total = rows[0]["total"] if rows else 0
    for row in rows:
        del row["total"]
    if state.as_json:
        state.print_json(rows)
    elif not rows:
        state.out.print("Nothing stands open." if status == "standing" else "Nothing found.")
        with state.connect() as connection:
            if verify.unscheduled(connection):
                state.out.print(f"\n{verify.NO_SCHEDULER}")
    else:
        state.print_table(
            ("#id", "severity", "status", "rule", "entity", "?since", "?assignee", "?#times", "?#company"),
            [
                (
                    r["id"],
                    r["severity"],
                    r["status"],
                    r["rule"],
                    f"{r['entity_type']} {r['entity_id'] or r['subject']}",
                    local_minute(r["first_seen_at"]),
                    r["assignee"],
                    r["occurrences"],
                    r["company_id"],
                )
                for r in rows
            ],
        )
        if total > len(rows):
            state.out.print(f"\n{total} in all; --limit shows more.")


def _require_rule(state: State, rule: str) -> None:
    """A rule that was removed may still have incidents."""
    known = state.query(
        "select r.rule from guard.rules as r where r.rule = %(rule)s"
        " union select i.rule from guard.incidents as i where i.rule = %(rule)s",
        rule=rule,
    )
    if not known:
        raise GuardError(f"There is no rule {rule!r}.", fix="guard rules list shows them.")


def _require_company(state: State, company: int) -> None:
    if not state.query("select from public.companies as c where c.id = %(company)s", company=company):
        raise GuardError(f"There is no company {company}.", fix="Give the id of a row of public.companies.")


@incidents.command()
@click.argument("incident", type=int)
@json_option
@pass_state
def show(state: State, incident: int) -> None:
    """Show INCIDENT, with what to do about it.

    \b
    Example:
      guard incidents show 17
    """
    rows = state.query(
        """
        select i.*, r.repair, r.runbook
        from guard.incidents as i
        left join guard.rules as r on i.rule = r.rule
        where i.id = %(id)s
        """,
        id=incident,
    )
    if not rows:
        raise GuardError(f"There is no incident {incident}.", fix="guard incidents list shows them.")
    state.print_record(rows[0])


def _set(state: State, incident: int, **changes: Any) -> None:
    rows = state.query(
        """
        select * from guard.set_incident(
            %(id)s, %(status)s, %(assignee)s, %(snoozed_until)s, %(note)s, %(is_false)s
        )
        """,
        **(dict.fromkeys(("status", "assignee", "snoozed_until", "note", "is_false")) | {"id": incident} | changes),
    )
    _print_changed(state, rows[0])


def _print_changed(state: State, row: Row) -> None:
    if state.as_json:
        state.print_json(row)
    else:
        state.out.print(
            f"Incident {row['id']} is {row['status']}"
            + (f" until {local_time(row['snoozed_until'])}" if row["snoozed_until"] else "")
            + (f", {row['assignee']} looks after it" if row["assignee"] else "")
            + "."
        )


@incidents.command()
@click.argument("incident", type=int)
@click.option("--note", help="What you found out.")
@json_option
@pass_state
def ack(state: State, incident: int, note: str | None) -> None:
    """Say that you have seen INCIDENT.

    \b
    Example:
      guard incidents ack 17 --note "calendar was down"
    """
    _set(state, incident, status="acknowledged", note=note)


@incidents.command()
@click.argument("incident", type=int)
@click.argument("until", type=future)
@click.option("--note", help="Why.")
@json_option
@pass_state
def snooze(state: State, incident: int, until: datetime, note: str | None) -> None:
    """Hear nothing of INCIDENT UNTIL a moment; it comes back by itself if it still stands.

    \b
    Examples:
      guard incidents snooze 17 2h
      guard incidents snooze 17 2026-12-24T08:00
    """
    _set(state, incident, status="snoozed", snoozed_until=until, note=note)


@incidents.command()
@click.argument("incident", type=int)
@click.argument("assignee")
@json_option
@pass_state
def assign(state: State, incident: int, assignee: str) -> None:
    """Have ASSIGNEE look after INCIDENT.

    \b
    Example:
      guard incidents assign 17 ann
    """
    _set(state, incident, assignee=assignee)


@incidents.command()
@click.argument("incident", type=int)
@click.option("--note", help="What was done.")
@click.option("--false", "is_false", is_flag=True, help="Nothing was wrong: leave it alone until it is written again.")
@json_option
@pass_state
def resolve(state: State, incident: int, note: str | None, is_false: bool) -> None:
    """Close INCIDENT. It opens again if the defect still stands, unless nothing was wrong.

    \b
    Examples:
      guard incidents resolve 17 --note "called the customer"
      guard incidents resolve 18 --false --note "two rooms, one name"
    """
    _set(state, incident, status="resolved", note=note, is_false=is_false or None)


@incidents.command()
@click.option("--take", is_flag=True, help="Mark what is wrong now as known.")
@click.option("--rule", metavar="RULE", help="Only of one rule, with --take.")
@json_option
@pass_state
def baseline(state: State, take: bool, rule: str | None) -> None:
    """Show how far the defects that were there at adoption are cleared, or take the baseline.

    What the baseline holds opens no incident; what comes to be wrong after it was cleared does.

    \b
    Examples:
      guard incidents baseline --take
      guard incidents baseline
    """
    failed = []
    if take:
        taken = state.query("select * from guard.take_baseline(%(rule)s)", rule=rule)
        failed = [f"{r['rule']} failed, and was not taken: {r['error']}" for r in taken if r["error"]]
    elif rule is not None:
        raise click.UsageError("--rule goes with --take.")
    rows = state.query("select * from guard.refresh_baseline()")
    if state.as_json:
        state.print_json(rows)
    elif not rows:
        state.out.print("No baseline was taken, or nothing was wrong then: guard incidents baseline --take")
    else:
        state.print_table(
            ("rule", "#known", "#cleared", "#standing", "since"),
            [
                (r["rule"], r["marked"], r["marked"] - r["standing"], r["standing"], local_time(r["marked_at"]))
                for r in rows
            ],
        )
    if failed:
        raise GuardError("; ".join(failed), fix="Mend the view of the rule; the others were taken.")


@click.command(short_help="Repair what breaks rules at correct or enforce.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--rule", metavar="RULE", help="Only the violations of one rule.")
@click.option(
    "--batch", type=click.IntRange(1, 10_000), default=reconciliation.BATCH, show_default=True, metavar="ROWS"
)
@click.option(
    "--pause",
    type=click.FloatRange(0, 60),
    default=reconciliation.PAUSE,
    show_default=True,
    metavar="SECONDS",
    help="Between two batches, each of which is a transaction.",
)
@json_option
@pass_state
def reconcile(state: State, dry_run: bool, rule: str | None, batch: int, pause: float) -> None:
    """Repair what breaks rules that stand at correct or enforce; queue for a person what cannot be repaired.

    It may be interrupted at any time, and goes on where it is needed. Exit status 2: something still breaks a rule;
    1: the view of a rule failed.

    \b
    Examples:
      guard reconcile --dry-run
      guard reconcile --rule missing_direction --batch 500 --pause 0.5
    """
    with state.connect() as connection:
        tallies = reconciliation.survey(connection, rule)
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=state.err,
            transient=True,
            disable=not state.err.is_terminal,
        ) as progress:
            bar = progress.add_task("", total=sum(tally.standing for tally in tallies))
            reconciliation.reconcile(
                connection,
                tallies,
                dry_run=dry_run,
                batch=batch,
                pause=pause,
                on_progress=lambda tally, rows: progress.update(bar, advance=rows, description=tally.rule),
            )
        left = sum(tally.standing for tally in reconciliation.survey(connection, rule))
    if state.as_json:
        columns = ("rule", "mode", "examined", "repaired", "queued", "note")
        state.print_json([{name: getattr(tally, name) for name in columns} for tally in tallies])
    else:
        state.print_table(
            ("rule", "mode", "#examined", "#would repair" if dry_run else "#repaired", "#queued for a person"),
            [(t.rule, t.mode, t.examined, t.repaired, t.queued) for t in tallies],
        )
        for tally in tallies:
            if tally.note:
                state.out.print(f"\n{tally.rule}: {tally.note}")
        observing = [tally.rule for tally in tallies if tally.mode == "observe" and tally.examined]
        if observing:
            state.out.print(
                f"\nWhat only observes is not repaired; to have it repaired: "
                f"guard rules set {observing[0] if len(observing) == 1 else 'RULE'} --mode correct"
            )
    if any(tally.error for tally in tallies):
        click.get_current_context().exit(1)
    if left:
        click.get_current_context().exit(FOUND)


@click.command(short_help="Put back what repairs changed since a moment.")
@click.option(
    "--since", type=past, metavar="MOMENT", required=True, help="2026-01-31T12:00, or how long ago: 30m, 2h, 3d."
)
@json_option
@pass_state
def undo(state: State, since: datetime) -> None:
    """Put back what reconciliation and repairs changed since a moment.

    A value that was changed again meanwhile is left as it is. Rules that would repair the rows again must be lowered
    first; guard says which.

    \b
    Example:
      guard undo --since 2h
    """
    with state.connect() as connection:
        undone = reconciliation.undo(connection, since)
    if state.as_json:
        state.print_json([{"rule": rule, "restored": r, "skipped": s} for rule, (r, s) in undone.items()])
    elif not undone:
        state.out.print("Nothing was repaired since then.")
    else:
        state.print_table(
            ("rule", "#values restored", "#changed since, left"), [(rule, r, s) for rule, (r, s) in undone.items()]
        )
