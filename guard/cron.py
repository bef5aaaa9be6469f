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
_HISTORY_JOB = "cron_history"

#: A job as pg_cron has it: schedule, command, database, and whether it is active.
Entry = tuple[str, str, str, bool]


@contextmanager
def _pg_cron(connection: Connection) -> Iterator[Connection | str]:
    """A connection to pg_cron's database, or why there is none; empty where the server does not load pg_cron."""
    try:
        row = connection.execute("select current_setting('cron.database_name', true)").fetchone()
    except errors.InsufficientPrivilege:
        yield "pg_cron is loaded, but this role may not see where: grant pg_read_all_settings to it"
        return
    if row is None or row[0] is None:
        yield ""
        return
    try:
        other = database.connect(connection.info.dsn, dbname=row[0], password=connection.info.password or None)
    except psycopg.OperationalError:
        yield f"pg_cron is in the database {row[0]}, to which this role cannot connect"
        return
    with other:
        usable = other.execute(
            """
            select
                to_regclass('cron.job') is not null
                and has_schema_privilege('cron', 'usage')
                and has_function_privilege('cron.schedule_in_database(text,text,text,text,text,boolean)', 'execute')
                and has_function_privilege('cron.alter_job(bigint,text,text,text,text,boolean)', 'execute')
            where to_regclass('cron.job') is not null
            """
        ).fetchone()
        if usable is None:
            yield f"pg_cron is loaded, but not created: create extension pg_cron, in the database {row[0]}"
        elif not usable[0]:
            yield f"pg_cron is there, but this role may not execute cron.schedule_in_database in the database {row[0]}"
        else:
            yield other


def sync(connection: Connection) -> list[str]:
    """Bring pg_cron up to date with the catalogue; without one, take every job out. What was done, a line each.

    Does nothing where pg_cron cannot be used: obstacle() says why.
    """
    with _pg_cron(connection) as cron:
        if isinstance(cron, str):
            return []
        has_catalogue = connection.execute("select to_regclass('guard.jobs')").fetchone() != (None,)
        wanted = _wanted(connection) if has_catalogue else {}
        done = _sync(cron, _name(connection), wanted)
    if has_catalogue:
        connection.execute("update guard.jobs set in_pg_cron = true, updated_at = now() where not in_pg_cron")
    return done


def obstacle(connection: Connection) -> str:
    """Why pg_cron is there, and does not run the jobs; empty where it does, and where there is none."""
    with _pg_cron(connection) as cron:
        return cron if isinstance(cron, str) else ""


def differences(connection: Connection) -> list[str]:
    """The jobs that pg_cron has otherwise than the catalogue says, or lacks; empty where there is no pg_cron."""
    with _pg_cron(connection) as cron:
        if isinstance(cron, str):
            return []
        wanted = _wanted(connection)
        found = {job: entry for job, _, entry in _found(cron, _name(connection))}
    return sorted(job for job in wanted.keys() | found.keys() if found.get(job) != wanted.get(job))


def _name(connection: Connection) -> str:
    # not what the client asked for: a pooler may call it otherwise
    row = connection.execute("select current_database()").fetchone()
    assert row is not None  # noqa: S101  # one value
    return str(row[0])


def _wanted(connection: Connection) -> dict[str, Entry]:
    name = _name(connection)
    rows = connection.execute("select job, schedule from guard.jobs").fetchall()
    wanted = {
        job: (schedule, sql.SQL("call guard.run_job({}, 'pg_cron')").format(job).as_string(), name, True)
        for job, schedule in rows
    }
    setting = connection.execute("select guard.setting('job_run_retention_days')").fetchone()
    history = sql.SQL(_HISTORY).format(prefix=f"guard:{name}:", age=f"{setting[0] if setting else 14} days")
    home = connection.execute("select current_setting('cron.database_name')").fetchone()
    wanted[_HISTORY_JOB] = ("50 2 * * *", history.as_string(), home[0] if home else "postgres", True)
    return wanted


def _found(cron: Connection, name: str) -> list[tuple[str, int, Entry]]:
    prefix = f"guard:{name}:"
    rows = cron.execute(
        """
        select j.jobname, j.jobid, j.schedule, j.command, j.database, j.active
        from cron.job as j
        where starts_with(j.jobname, %s)
        order by j.jobid
        """,
        (prefix,),
    ).fetchall()
    return [(job.removeprefix(prefix), jobid, tuple(entry)) for job, jobid, *entry in rows]


def _sync(cron: Connection, name: str, wanted: dict[str, Entry]) -> list[str]:
    done: list[str] = []
    missing = dict(wanted)
    for job, jobid, entry in _found(cron, name):
        # of two of one name, by two roles, one is too many
        entry_wanted = missing.pop(job, None)
        if entry_wanted is None:
            cron.execute("select cron.unschedule(%s::bigint)", (jobid,))
            done.append(f"took job {job} out of pg_cron")
        elif entry != entry_wanted:
            cron.execute(
                "select cron.alter_job(%s, schedule => %s, command => %s, database => %s, active => %s)",
                (jobid, *entry_wanted),
            )
            done.append(f"changed job {job} in pg_cron")
    for job, entry in missing.items():
        cron.execute("select cron.schedule_in_database(%s, %s, %s, %s, active => %s)", (f"guard:{name}:{job}", *entry))
        done.append(f"handed job {job} to pg_cron")
    return done
