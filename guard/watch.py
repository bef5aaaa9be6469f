"""guard watch: judge what was written as soon as its grace has passed, and look over everything else again and again.

A write that leaves something suspicious notifies the channel `guard_pending`. Through a pooler in transaction mode
nothing is heard, and the tick alone drives the watch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TypedDict

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

from guard import database
from guard.database import Connection
from guard.errors import GuardError, from_database

#: How long nothing is looked at when nothing is heard, in seconds.
TICK = 1.0

#: And how short it may be, when much is heard.
SHORTEST_PAUSE = 0.05

#: How many are judged in one transaction.
BATCH = 1000

#: A whole detection takes at most one part in so many of the time: a dirty database is not loaded by being watched.
REST = 10

#: How far back detection looks beyond the time since it ran last, in seconds: a transaction may commit late.
OVERLAP = 60

#: How often the jobs are looked at, in seconds.
JOBS_EVERY = 60.0

LONGEST_BACKOFF = 10.0

#: What ends a step and not the watch: the next tick tries again.
_PASSING = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.QueryCanceled,
)


class Incident(TypedDict):
    """A new incident, or one that has come back; `subject` is the name of a job or rule, which has no id."""

    id: int
    severity: str
    rule: str
    entity_type: str
    entity_id: int | None
    subject: str | None
    company_id: int | None
    description: str
    first_seen_at: datetime


class Watch:
    """Watches one database until it is stopped. Several at once share the work."""

    def __init__(
        self, dsn: str, report: Callable[[list[Incident]], None], complain: Callable[[GuardError], None]
    ) -> None:
        self._dsn = dsn
        self._report = report
        self._complain = complain
        self._stop = threading.Event()
        self._shown: set[tuple[int, datetime]] | None = None
        self._detected: float | None = None
        self._is_able = False
        self._detect_at = 0.0
        self._check_jobs_at = 0.0

    def stop(self) -> None:
        """May be called from a signal handler; the watch ends within a tick."""
        self._stop.set()

    def run(self) -> None:
        """Blocks until it is stopped. A server that goes away, or is a standby, is waited for.

        Raises psycopg.Error if it cannot be reached, or the work cannot be done, at the start.
        """
        backoff = 0.0
        while not self._stop.is_set():
            try:
                # a server that vanished without a word is given up after some seconds, too
                with database.connect(self._dsn, tcp_user_timeout=10_000, keepalives_idle=5) as connection:
                    if connection.execute("select pg_is_in_recovery()").fetchone() == (True,):
                        raise errors.ReadOnlySqlTransaction("the server is a standby: waiting for it to be promoted")
                    if self._shown is None:
                        database.require_installed(connection, "incidents")
                        self._shown = {(i["id"], i["first_seen_at"]) for i in self._new(connection)}
                    connection.execute("listen guard_pending")
                    backoff = 0.0
                    self._watch(connection)
            except (psycopg.OperationalError, errors.ReadOnlySqlTransaction) as error:
                if self._shown is None and isinstance(error, psycopg.OperationalError):
                    raise
                if not backoff:
                    self._complain(from_database(error, "watch"))
                backoff = min(max(0.25, backoff * 2), LONGEST_BACKOFF)
                self._stop.wait(backoff)

    def _watch(self, connection: Connection) -> None:
        while not self._stop.is_set():
            wait = TICK
            try:
                wait = self._look(connection)
                self._is_able = True
            except _PASSING:
                pass
            except (psycopg.OperationalError, errors.ReadOnlySqlTransaction):
                raise
            except psycopg.Error as error:
                if not self._is_able:
                    raise
                self._complain(from_database(error, "watch"))
                self._stop.wait(LONGEST_BACKOFF)
            for _ in connection.notifies(timeout=wait, stop_after=1):
                self._stop.wait(SHORTEST_PAUSE)

    def _look(self, connection: Connection) -> float:
        """Judge what is due, detect if it is time for it, tell what is new. In how many seconds to look again."""
        judged = BATCH
        while judged == BATCH and not self._stop.is_set():
            (judged,) = connection.execute("select judged from guard.judge_pending(%s)", (BATCH,)).fetchone() or (0,)
        now = time.monotonic()
        if now >= self._detect_at:
            self._detect(connection)
        if now >= self._check_jobs_at:
            connection.execute("select guard.check_jobs()")
            self._check_jobs_at = now + JOBS_EVERY
        self._tell(connection)
        row = connection.execute(
            """
            select extract(epoch from min(p.due_at) - clock_timestamp())::float8
            from guard.pending_checks as p
            """
        ).fetchone()
        return TICK if row is None or row[0] is None else min(max(row[0], SHORTEST_PAUSE), TICK)

    def _detect(self, connection: Connection) -> None:
        """Over what was written since the last time; at first over the time that the rules say."""
        begun = time.monotonic()
        window = None if self._detected is None else begun - self._detected + OVERLAP
        with connection.transaction():
            query = "select pg_try_advisory_xact_lock(hashtext('guard.watch'))"
            if connection.execute(query).fetchone() == (True,):
                connection.execute(
                    "select guard.detect(coalesce(make_interval(secs => %s), interval '1 hour'))", (window,)
                )
        self._detected = begun
        took = time.monotonic() - begun
        self._detect_at = begun + took + max(TICK, REST * took)

    def _tell(self, connection: Connection) -> None:
        new = self._new(connection)
        seen = {(i["id"], i["first_seen_at"]) for i in new}
        if fresh := [i for i in new if (i["id"], i["first_seen_at"]) not in (self._shown or ())]:
            self._report(fresh)
        self._shown = seen

    @staticmethod
    def _new(connection: Connection) -> list[Incident]:
        """The incidents of the last minutes: a transaction may commit long after the time that it wrote down."""
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                """
                select
                    i.id, i.severity, i.rule, i.entity_type, i.entity_id,
                    case when i.entity_id is null then i.details ->> 'subject' end as subject,
                    i.company_id, i.description, i.first_seen_at
                from guard.incidents as i
                where i.first_seen_at > now() - interval '2 minutes'
                order by i.first_seen_at, i.id
                """
            ).fetchall()  # type: ignore[return-value]  # the query's columns
