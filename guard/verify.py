"""Is the database as guard left it, do its rules do what their modes say, and do its jobs run?

Read-only but for a probe taken back, and for the incidents of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from psycopg import errors

from guard import constraints, cron, database, ledger, migrations, rules
from guard.database import Connection
from guard.ledger import SqlObject

#: Said until something has run a job by itself.
NO_SCHEDULER = "Nothing runs the jobs yet: start guard scheduler, or have cron run guard tick every minute."

#: insufficient_privilege, read_only_sql_transaction: what a session may not do, whatever the state of the database.
_MAY_NOT_WRITE = ("42501", "25006")


class Finding(TypedDict):
    """`kind` is one of the kinds in the README; `fix` is a command or a statement."""

    kind: str
    object: str
    fix: str


class Verification(TypedDict):
    """`notes` say what could not be looked at, `unprobed` which rules were not tried: no findings."""

    ok: bool
    findings: list[Finding]
    notes: list[str]
    unprobed: list[str]


def run(connection: Connection, own_rules: Path | None = None) -> Verification:
    """Compare files, ledger and catalog, look at what may have been broken by hand, then break each rule on trial."""
    findings: list[Finding] = []
    notes: list[str] = []
    probed: set[str] = set()
    applied = migrations.applied_ids(connection)
    if not applied:
        findings.append({"kind": "pending", "object": "guard is not installed", "fix": "guard apply"})
    else:
        findings += _migrations(connection, applied)
        findings += _ledger(connection, own_rules)
        functions_are_sound = not findings
        if applied.issuperset(migration.id for migration in migrations.shipped()):
            findings += _catalog(connection)
            findings += _indexes(connection)
        if functions_are_sound:
            findings += _constraints(connection)
            findings += _slipping_through(connection)
            if not any(finding["kind"] == "time_zone" for finding in findings):
                findings += _clock(connection)
            notes += _undelivered(connection)
        if not findings:
            probed = _probe(connection, findings, notes)
        if functions_are_sound:
            findings += _jobs(connection, notes)
    unprobed = [rule for rule in _registered(connection) if rule not in probed]
    return {"ok": not findings, "findings": findings, "notes": notes, "unprobed": unprobed}


def _registered(connection: Connection) -> list[str]:
    if not database.has_relation(connection, "guard.rules"):
        return []
    return [rule for (rule,) in connection.execute("select r.rule from guard.rules as r order by r.rule").fetchall()]


def _migrations(connection: Connection, applied: set[str]) -> Iterator[Finding]:
    checksums: dict[str, str] = {}
    if database.has_relation(connection, "guard.objects"):
        rows = connection.execute("select identity, checksum from guard.objects where kind = 'migration'")
        checksums = dict(rows.fetchall())
    shipped = migrations.shipped()
    for migration in shipped:
        name = f"migration {migration.id}"
        if migration.id not in applied:
            yield {"kind": "pending", "object": name, "fix": "guard apply"}
        elif checksums.get(migration.id, migrations.checksum(migration)) != migrations.checksum(migration):
            yield {
                "kind": "edited",
                "object": name,
                "fix": "restore the file: an applied migration must not change; write a new one",
            }
    for unknown in sorted(applied - {migration.id for migration in shipped}):
        yield {
            "kind": "orphaned",
            "object": f"migration {unknown}",
            "fix": "use the version of guard that applied it",
        }


def _ledger(connection: Connection, own_rules: Path | None) -> Iterator[Finding]:
    difference = ledger.compare(connection, ledger.read_files(own_rules))
    for file in difference.pending:
        yield {"kind": "pending", "object": file.path, "fix": "guard apply"}
    for obj in difference.missing:
        yield {"kind": "missing", "object": str(obj), "fix": "guard apply"}
    disabled = _disabled_triggers(connection)
    for obj in difference.drifted:
        if str(obj) not in disabled:
            yield {"kind": "drifted", "object": str(obj), "fix": "guard apply"}
    for obj in difference.obsolete:
        yield {"kind": "orphaned", "object": str(obj), "fix": "guard apply"}
    for obj in difference.orphaned:
        yield {
            "kind": "orphaned",
            "object": str(obj),
            "fix": "guard apply --prune drops it; or give the folder of your own rules with --rules",
        }
    for name in sorted(disabled):
        yield {"kind": "disabled_trigger", "object": name, "fix": "guard apply"}


def _disabled_triggers(connection: Connection) -> set[str]:
    rows = connection.execute(
        """
        select format('trigger public.%I %I', c.relname, t.tgname)
        from pg_catalog.pg_trigger as t
        inner join pg_catalog.pg_class as c on t.tgrelid = c.oid
        inner join pg_catalog.pg_proc as p on t.tgfoid = p.oid
        where p.pronamespace = 'guard'::regnamespace and t.tgenabled not in ('O', 'A')
        """
    ).fetchall()
    return {row[0] for row in rows}


def _catalog(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        """
        select 'invalid_index', format('index %%s', i.indexrelid::regclass), 'guard apply'
        from pg_catalog.pg_index as i
        where i.indrelid in (to_regclass('public.calls'), to_regclass('public.appointments'))
            and i.indexrelid::regclass::text ~ '^(public\\.)?guard_' and not i.indisvalid
        union all
        select 'missing', format('index public.%%s', wanted.name), 'guard apply'
        from unnest(%s::text[]) as wanted (name)
        where to_regclass('public.' || wanted.name) is null
        union all
        select
            'not_validated', format('constraint %%s on %%s', c.conname, c.conrelid::regclass),
            format('guard rules set %%s --mode MODE puts it in force', substr(c.conname, 7))
        from pg_catalog.pg_constraint as c
        where c.conrelid in (to_regclass('public.calls'), to_regclass('public.appointments'))
            and c.conname ~ '^guard_' and not c.convalidated
        union all
        select 'missing_role', wanted.name, format('create role %%I nologin', wanted.name)
        from unnest(%s::text[]) as wanted (name)
        where not exists (select from pg_catalog.pg_roles as r where r.rolname = wanted.name)
        union all
        select 'missing_extension', 'btree_gist', 'create extension btree_gist with schema guard'
        where not exists (select from pg_catalog.pg_extension as e where e.extname = 'btree_gist')
        union all
        select
            'row_security', format('table %%s', c.oid::regclass),
            'as a superuser: alter role guard_owner bypassrls'
        from pg_catalog.pg_class as c
        where c.oid in (to_regclass('public.calls'), to_regclass('public.appointments')) and c.relrowsecurity
            and not (select r.rolbypassrls or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = 'guard_owner')
        union all
        select
            'time_zone', format('setting app_timezone is %%L', s.value),
            'guard apply --app-timezone ZONE, with a name of pg_timezone_names'
        from guard.settings as s
        where s.name = 'app_timezone'
            and not exists (select from pg_catalog.pg_timezone_names as z where z.name = s.value)
        union all
        select
            'fault', format('%%s faults of guard''s own in the last day, the last one in %%s: %%s',
                count(*), (array_agg(f.place order by f.id desc))[1], (array_agg(f.message order by f.id desc))[1]),
            'mend the cause, then delete from guard.faults'
        from guard.faults as f
        where f.created_at > now() - interval '1 day'
        having count(*) > 0
        union all
        select
            'dead_delivery', format('channel %%s: %%s given up, the last one: %%s', d.channel, count(*),
                (array_agg(d.last_error order by d.id desc))[1]),
            'mend the channel, then guard notify --requeue all; guard notify --list shows them'
        from guard.deliveries as d
        where d.status = 'dead'
        group by d.channel
        union all
        select
            'stuck_intent', format('%%s bookings that were begun have not come further, the oldest since %%s UTC',
                count(*), to_char(min(i.updated_at) at time zone 'UTC', 'YYYY-MM-DD HH24:MI')),
            'guard jobs run recover_intents; guard intents list shows them'
        from guard.booking_intents as i
        where i.state::text = any('{started,remote_booked,recorded}')
            -- by then the job has seen them twice
            and i.updated_at < now() - interval '10 minutes'
                - (select s.value::numeric from guard.settings as s where s.name = 'outcome_unknown_minutes')
                    * interval '1 minute'
        having count(*) > 0
        """,
        ([name for m in migrations.shipped() for name in migrations.index_names(m)], list(migrations.ROLES)),
    ).fetchall()
    for kind, obj, fix in rows:
        yield {"kind": kind, "object": obj, "fix": fix}


def _indexes(connection: Connection) -> Iterator[Finding]:
    """Indexes of migrations that are not as they were made. One that is missing or invalid is found by its name."""
    recorded = ledger.on_tables(connection)
    made = [SqlObject("index", f"public.{name}") for m in migrations.shipped() for name in migrations.index_names(m)]
    for obj, fingerprint in ledger.fingerprints(connection, made).items():
        if fingerprint is not None and (obj not in recorded or recorded[obj].fingerprint != fingerprint):
            yield {
                "kind": "drifted",
                "object": str(obj),
                "fix": f"drop index concurrently {obj.identity}, then guard apply",
            }


def _constraints(connection: Connection) -> Iterator[Finding]:
    """Constraints of rules that are not as they were made, or not there. Half-made ones are found by their state."""
    own = constraints.due_on_own_tables(connection)
    for kind, found in ("missing", constraints.lost(connection)), ("drifted", constraints.drifted(connection)):
        for rule, obj in found.items():
            if constraints.state(connection, rule) in ("absent", "in force"):
                fix = "guard apply" if rule in own else rules.command(connection, rule)
                if in_the_way := constraints.violations(connection, rule):
                    fix = f"repair the {in_the_way} rows of guard.{rule} that stand in its way, then {fix}"
                yield {"kind": kind, "object": str(obj), "fix": fix}


def _slipping_through(connection: Connection) -> Iterator[Finding]:
    for rule in rules.slipping_through(connection):
        yield {
            "kind": "slips_through",
            "object": f"rule {rule}: two sessions at once, since inconsistent_link_status stands too low",
            "fix": "guard rules set inconsistent_link_status --mode correct",
        }


def _undelivered(connection: Connection) -> Iterator[str]:
    """A quarter of an hour is more than throttle and retry take where a sender runs and its channels work."""
    row = connection.execute(
        """
        select count(*), to_char(min(w.created_at) at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
        from (
            select d.created_at from guard.deliveries as d where d.status = 'pending'
            union all
            select n.created_at
            from guard.due_notifications(now()) as due
            inner join guard.notifications as n on due.id = n.id
        ) as w
        where w.created_at < now() - interval '15 minutes'
        having count(*) > 0
        """
    ).fetchone()
    if row is not None:
        yield f"The outbox holds {row[0]} undelivered, the oldest since {row[1]} UTC: guard notify delivers them."


def _clock(connection: Connection) -> Iterator[Finding]:
    """A newest call in the future: local timestamps are read in a zone west of the one that they were written in."""
    row = connection.execute(
        """
        select round(extract(epoch from guard.instant(max(c.created_at)) - now()) / 60)
        from public.calls as c
        having guard.instant(max(c.created_at)) > now() + interval '5 minutes'
        """
    ).fetchone()
    if row is not None:
        yield {
            "kind": "time_zone",
            "object": f"the newest call was created {row[0]} minutes from now",
            "fix": "guard apply --app-timezone ZONE, with the zone that the application writes in",
        }


def _jobs(connection: Connection, notes: list[str]) -> Iterator[Finding]:
    """Jobs that failed or were missed, and those that pg_cron has otherwise than it should."""
    for change in cron.differences(connection):
        yield {"kind": "job", "object": f"apply would have {change}", "fix": "guard apply"}
    with suppress(errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction):
        connection.execute("select guard.check_jobs()")
    rows = connection.execute(
        """
        select concat_ws(': ', i.description, i.details ->> 'error'), 'guard jobs run ' || (i.details ->> 'subject')
        from guard.incidents as i
        where i.entity_type = 'job' and i.status <> 'resolved'
        order by i.fingerprint
        """
    ).fetchall()
    for description, fix in rows:
        yield {"kind": "job", "object": description, "fix": fix}
    if unscheduled(connection):
        notes.append(NO_SCHEDULER)


def unscheduled(connection: Connection) -> bool:
    """Whether nothing has ever run the jobs but people."""
    scheduled = connection.execute(
        """
        select exists (select from guard.jobs as j where j.in_pg_cron)
            or exists (select from guard.job_runs as r where r.runner <> 'manual')
        """
    ).fetchone()
    return scheduled == (False,)


def _probe(connection: Connection, findings: list[Finding], notes: list[str]) -> set[str]:
    """Break every rule on trial. Returns those that could be; a session that may not write is only noted."""
    if connection.execute("select pg_is_in_recovery()").fetchone() == (True,):
        notes.append("The probe was left out: the server is a standby.")
        return set()
    row = connection.execute(
        "select current_user::text, has_function_privilege('guard.probe_rule(text)', 'execute')"
    ).fetchone()
    if row is not None and not row[1]:
        notes.append(f"The probe was left out: {row[0]} may not write on trial; a member of guard_operator may.")
        return set()
    with connection.transaction(force_rollback=True):
        connection.execute("set local lock_timeout = '1s'")
        rows = connection.execute(
            """
            select p.rule, p.mode, p.expected, p.observed, p.passed, p.note, p.errcode
            from guard.rules as r
            cross join lateral guard.probe_rule(r.rule) as p
            order by p.rule
            """
        ).fetchall()
    left_out: dict[str, None] = {}
    for rule, mode, expected, observed, passed, note, errcode in rows:
        if observed is None and errcode in _MAY_NOT_WRITE:
            left_out[f"The probe was left out: {note}"] = None
        elif observed is None and errcode is not None:
            findings.append(
                {
                    "kind": "probe",
                    "object": f"rule {rule} at {mode} was not probed: {note}",
                    "fix": "see which trigger or constraint of the application's, or of an own rule's, keeps it out",
                }
            )
        elif note is not None:
            notes.append(f"{rule}: {note}")
        elif not passed:
            findings.append(
                {
                    "kind": "probe",
                    "object": f"rule {rule} at {mode}: a bad row was {observed}, and should have been {expected}",
                    "fix": "guard apply; if it stays so, look at the application's own triggers",
                }
            )
    notes += left_out
    return {rule for rule, _, _, observed, *_ in rows if observed is not None}
