"""Handing the jobs to pg_cron, where it is there and this role may use it.

pg_cron lives in one database of the cluster, and its jobs name the database that they run in: they are written there,
as `guard:<database>:<job>`. The role that wrote a job is the one that it runs as.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors, sql

from guard import database
from guard.database import Connection

#: Prunes pg_cron's own history of guard's jobs, which nothing else does.
_HISTORY = (
    "delete from cron.job_run_details as d using cron.job as j"
    " where d.jobid = j.jobid and starts_with(j.jobname, {prefix}) and d.start_time < now() - interval {age}"
)

#: A job as pg_cron has it: schedule, command, database, and whether it is active.
Entry = tuple[str, str, str, bool]

#: A statement for pg_cron's database, and what it does.
Change = tuple[str, str]


def sync(connection: Connection) -> list[str]:
    """Bring pg_cron up to date with the catalogue; without one, take every job out. What was done, a line each.

    Does nothing where pg_cron cannot be used: obstacle() says why.
    """
    with _pg_cron(connection) as cron:
        if isinstance(cron, str):
            return []
        schedules = _catalogue(connection)
        changes = _changes(cron, connection, schedules)
        for statement, _ in changes:
            cron.execute(statement.encode())
    if schedules:
        connection.execute("update guard.jobs set in_pg_cron = true, updated_at = now() where not in_pg_cron")
    return [what for _, what in changes]


def planned(connection: Connection, shipped: dict[str, str]) -> list[str]:
    """What sync() will run in pg_cron's database, once these jobs (their schedules by name) are in the catalogue."""
    with _pg_cron(connection) as cron:
        if isinstance(cron, str):
            return []
        return [statement for statement, _ in _changes(cron, connection, shipped | _catalogue(connection))]


def differences(connection: Connection) -> list[str]:
    """What sync() would do, a line each."""
    with _pg_cron(connection) as cron:
        return [] if isinstance(cron, str) else [what for _, what in _changes(cron, connection, _catalogue(connection))]


def obstacle(connection: Connection) -> str:
    """Why pg_cron is there, and does not run the jobs; empty where it does, and where there is none."""
    with _pg_cron(connection) as cron:
        return cron if isinstance(cron, str) else ""


@contextmanager
def _pg_cron(connection: Connection) -> Iterator[Connection | str]:
    """A connection to pg_cron's database, or why there is none; empty where the server does not load pg_cron."""
    try:
        home = _value(connection, "select current_setting('cron.database_name', true)")
    except errors.InsufficientPrivilege:
        yield "pg_cron is loaded, but this role may not see where: grant pg_read_all_settings to it"
        return
    if home is None:
        yield ""
        return
    try:
        cron = database.connect(connection.info.dsn, dbname=home, password=connection.info.password or None)
    except psycopg.OperationalError:
        yield f"pg_cron is in the database {home}, to which this role cannot connect"
        return
    with cron:
        # by their oids: who may not use the schema may not even name what is in it
        usable = cron.execute(
            """
            select bool_and(has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute'))
            from pg_catalog.pg_namespace as n
            inner join pg_catalog.pg_proc as p on n.oid = p.pronamespace
            where n.nspname = 'cron' and p.proname::text = any('{schedule_in_database,alter_job}')
            """
        ).fetchone()
        if usable == (None,):
            yield f"pg_cron is loaded, but not created: create extension pg_cron, in the database {home}"
        elif usable != (True,):
            yield f"pg_cron is there, but this role may not execute cron.schedule_in_database in the database {home}"
        else:
            yield cron


def _value(connection: Connection, query: str) -> str | None:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def _catalogue(connection: Connection) -> dict[str, str]:
    """The schedule of each job; empty where there is no catalogue."""
    if _value(connection, "select to_regclass('guard.jobs')") is None:
        return {}
    return dict(connection.execute("select job, schedule from guard.jobs").fetchall())


def _changes(cron: Connection, connection: Connection, schedules: dict[str, str]) -> list[Change]:
    """What makes pg_cron's jobs of this database those with these schedules."""
    # not what the client asked for: a pooler may call it otherwise
    name = _value(connection, "select current_database()") or ""
    prefix = f"guard:{name}:"
    missing = _wanted(cron, connection, schedules, name)
    changes: list[Change] = []
    rows = cron.execute(
        """
        select j.jobid, j.jobname, j.schedule, j.command, j.database, j.active
        from cron.job as j
        where starts_with(j.jobname, %s)
        order by j.jobid
        """,
        (prefix,),
    ).fetchall()
    for jobid, jobname, *found in rows:
        job = jobname.removeprefix(prefix)
        # of two of one name, by two roles, one is too many
        entry = missing.pop(job, None)
        if entry is None:
            changes.append((f"select cron.unschedule({jobid}::bigint)", f"took job {job} out of pg_cron"))
        elif tuple(found) != entry:
            alter = sql.SQL(
                "select cron.alter_job({}, schedule => {}, command => {}, database => {}, active => {})"
            ).format(jobid, *entry)
            changes.append((alter.as_string(), f"changed job {job} in pg_cron"))
    for job, entry in missing.items():
        schedule = sql.SQL("select cron.schedule_in_database({}, {}, {}, {}, active => {})").format(
            prefix + job, *entry
        )
        changes.append((schedule.as_string(), f"handed job {job} to pg_cron"))
    return changes


def _wanted(cron: Connection, connection: Connection, schedules: dict[str, str], name: str) -> dict[str, Entry]:
    if not schedules:
        return {}
    wanted: dict[str, Entry] = {
        job: (schedule, sql.SQL("call guard.run_job({}, 'pg_cron')").format(job).as_string(), name, True)
        for job, schedule in schedules.items()
    }
    days = None
    if _value(connection, "select to_regprocedure('guard.setting(text)')") is not None:
        days = _value(connection, "select guard.setting('job_run_retention_days')")
    history = sql.SQL(_HISTORY).format(prefix=f"guard:{name}:", age=f"{days or 14} days")
    home = _value(cron, "select current_database()") or ""
    return wanted | {"cron_history": ("50 2 * * *", history.as_string(), home, True)}
