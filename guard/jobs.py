"""Jobs: what is due, running it, and the scheduler for where there is no pg_cron.

What a job does, and that it never runs twice at once, is sql/functions/jobs.sql; here is only when.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import psycopg
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from psycopg.rows import dict_row

from guard import database
from guard.database import Connection
from guard.errors import GuardError, from_database

#: How long a scheduler goes by the catalogue that it read, in seconds.
REFRESH_SECONDS = 15.0

Report = Callable[["Run"], None]


class Job(TypedDict):
    """A job and its last run; times are UTC, `next_run` is null for a job that is switched off."""

    job: str
    description: str
    schedule: str
    enabled: bool
    in_pg_cron: bool
    last_run: datetime | None
    runner: str | None
    status: str | None
    next_run: datetime | None


class Run(TypedDict):
    """A row of guard.job_runs, without its bookkeeping."""

    id: int
    job: str
    runner: str
    status: str
    steps: int
    result: dict[str, Any] | None
    error: str | None
    started_at: datetime
    finished_at: datetime | None


_RUN = "r.id, r.job, r.runner, r.status, r.steps, r.result, r.error, r.started_at, r.finished_at"


def listing(connection: Connection) -> list[Job]:
    """Every job, with its last run and its next. Raises GuardError where guard is not installed."""
    database.require_installed(connection, "jobs")
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """
            select
                j.job, j.description, j.schedule, j.enabled, j.in_pg_cron, r.started_at as last_run, r.runner, r.status,
                clock_timestamp() as now
            from guard.jobs as j
            left join lateral (
                select s.started_at, s.runner, s.status
                from guard.job_runs as s where s.job = j.job order by s.id desc limit 1
            ) as r on true
            order by j.job
            """
        ).fetchall()
    return [
        Job(**row, next_run=_trigger(row["schedule"]).get_next_fire_time(None, now) if row["enabled"] else None)  # type: ignore[typeddict-item]  # the query's columns
        for row, now in ((row, row.pop("now")) for row in rows)
    ]


def runs(connection: Connection, job: str | None, limit: int) -> list[Run]:
    """The newest runs, of one job or of all. Raises GuardError for a job that there is not and was not."""
    database.require_installed(connection, "jobs")
    if job is not None:
        known = (
            "select from guard.jobs as j where j.job = %s union all select from guard.job_runs as r where r.job = %s"
        )
        if connection.execute(known, (job, job)).fetchone() is None:
            raise GuardError(f"There is no job {job!r}.", fix="guard jobs list shows them.")
    query = f"select {_RUN} from guard.job_runs as r where r.job = coalesce(%s, r.job) order by r.id desc limit %s"  # noqa: S608  # a constant
    return _runs(connection, query, (job, limit))


def run(connection: Connection, job: str, runner: str) -> Run | None:
    """Run a job now. None if it was not run: it is running already, or a scheduler had it run within this minute.

    The connection must be in autocommit: a run is several transactions.
    """
    database.require_installed(connection, "jobs")
    row = connection.execute("call guard.run_job(%s, %s)", (job, runner)).fetchone()
    if row is None or row[0] is None:
        return None
    return _runs(connection, f"select {_RUN} from guard.job_runs as r where r.id = %s", (row[0],))[0]  # noqa: S608  # a constant


def due(connection: Connection) -> list[str]:
    """The jobs whose turn has come since a scheduler ran them last, by the clock of the database."""
    database.require_installed(connection, "jobs")
    rows = connection.execute(
        """
        select j.job, j.schedule, coalesce(r.started_at, j.updated_at), clock_timestamp()
        from guard.jobs as j
        left join lateral (
            select s.started_at
            from guard.job_runs as s where s.job = j.job and s.runner <> 'manual' order by s.id desc limit 1
        ) as r on true
        where j.enabled
        order by j.every, j.job
        """
    ).fetchall()
    return [
        job
        for job, schedule, last, now in rows
        # a run in the future: the clock was set back
        if last > now or _trigger(schedule).get_next_fire_time(last, last + timedelta(microseconds=1)) <= now
    ]


def tick(connection: Connection, report: Report) -> bool:
    """Run what is due, one after the other. Whether all went well."""
    well = True
    for job in due(connection):
        if done := run(connection, job, "tick"):
            report(done)
            well &= done["status"] == "succeeded"
    return well


def _trigger(schedule: str) -> CronTrigger:
    return CronTrigger.from_crontab(schedule, timezone=UTC)


def _runs(connection: Connection, query: str, parameters: tuple[Any, ...]) -> list[Run]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), parameters).fetchall()  # type: ignore[return-value]  # the query's columns


class Scheduler:
    """Runs the jobs at their times, each in a connection of its own, until it is stopped.

    Several at once are one: the database lets each turn be taken once. A server that is away is waited for.
    """

    def __init__(self, dsn: str, report: Report, complain: Callable[[GuardError], None]) -> None:
        self._dsn = dsn
        self._report = report
        self._complain = complain
        self._stop = threading.Event()
        self._known: dict[str, str] = {}
        # that a run still goes on when its next turn comes is recorded where runs are
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def run(self) -> None:
        """Blocks until stop() is called; runs that are under way then are waited for."""
        with database.connect(self._dsn) as connection:
            self._refresh(connection, first=True)
        self._scheduler.start()
        try:
            while not self._stop.wait(REFRESH_SECONDS):
                try:
                    with database.connect(self._dsn) as connection:
                        self._refresh(connection)
                except psycopg.Error as error:
                    self._complain(from_database(error, "the catalogue of jobs"))
        finally:
            self._scheduler.shutdown(wait=True)

    def stop(self) -> None:
        self._stop.set()

    def _refresh(self, connection: Connection, *, first: bool = False) -> None:
        """Bring the schedule up to date with the catalogue; at the start, what is due is run at once."""
        overdue = due(connection) if first else []
        wanted = {job["job"]: job["schedule"] for job in listing(connection) if job["enabled"]}
        for job in self._known.keys() - wanted.keys():
            self._scheduler.remove_job(job)
        for job, schedule in wanted.items():
            if self._known.get(job) != schedule:
                at_once = {"next_run_time": datetime.now(UTC)} if job in overdue else {}
                self._scheduler.add_job(
                    self._run, _trigger(schedule), [job], id=job, name=job, replace_existing=True, **at_once
                )
        self._known = wanted

    def _run(self, job: str) -> None:
        try:
            with database.connect(self._dsn) as connection:
                done = run(connection, job, "scheduler")
        except psycopg.Error as error:
            self._complain(from_database(error, f"job {job}"))
        else:
            if done is not None:
                self._report(done)
