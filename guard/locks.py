"""Short waits for locks: a statement that cannot have its lock at once gives up, lets writers pass, and tries again.

A writer that queues behind a waiting ALTER TABLE stands still as long as the ALTER waits; with a short lock_timeout
and a retry it stands still for a moment.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg
from psycopg import errors

from guard.database import LOCK_TIMEOUT_MS, Connection
from guard.errors import LockTimeoutError

T = TypeVar("T")

#: How long a concurrent index build waits for older transactions: nobody queues behind it.
CONCURRENT_TIMEOUT_MS = 60_000
ATTEMPTS = 12
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 3.0

#: What in a query may be somebody's data: a string, also one that was cut off, and a long number.
_DATA = re.compile(r"'(?:[^'\\]|\\.|'')*(?:'|$)|\$([a-z_]*)\$.*?(?:\$\1\$|$)|\+?\d{5,}", re.IGNORECASE)


def delays() -> Iterator[float]:
    """Seconds to wait before each further attempt: doubling, capped, with up to half as much again at random."""
    for attempt in range(ATTEMPTS - 1):
        delay = min(FIRST_DELAY_SECONDS * 2**attempt, LONGEST_DELAY_SECONDS)
        yield delay * (1 + random.random() / 2)  # noqa: S311  # spreads retries, protects nothing


def retry_on_lock_timeout(action: Callable[[], T], *, what: str, worker: Connection, observer: Connection) -> T:
    """Run `action` (which works on `worker`) until it gets its locks; `observer` sees who blocks it.

    Only SQLSTATE 55P03 is retried. Raises LockTimeoutError, naming the blocking query, when the attempts are used up.
    """
    waits = delays()
    while True:
        blockers: list[str] = []
        try:
            with _watch_blockers(worker.info.backend_pid, observer, blockers):
                return action()
        except errors.LockNotAvailable:
            wait = next(waits, None)
            if wait is None:
                holder = "; ".join(blockers) or "a session that has ended meanwhile"
                raise LockTimeoutError(f"{what}: no lock after {ATTEMPTS} attempts. Blocked by {holder}.") from None
            time.sleep(wait)


@contextmanager
def _watch_blockers(pid: int, observer: Connection, blockers: list[str]) -> Iterator[None]:
    """Note, while the block runs, which sessions the backend `pid` waits for."""
    done = threading.Event()

    def look() -> None:
        # the server may go away; then the block itself fails, and says so
        with suppress(psycopg.Error):
            while not done.wait(LOCK_TIMEOUT_MS / 4000):
                if found := blocking_sessions(observer, pid):
                    blockers[:] = found

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def blocking_sessions(observer: Connection, pid: int) -> list[str]:
    """One line for each session that the backend `pid` waits for: pid, user, age, state, query.

    Strings and long numbers in the query are masked: it may hold a phone number. Of other users' sessions a role sees
    pid and user only, unless it is a member of pg_read_all_stats.
    """
    (blockers,) = observer.execute("select pg_catalog.pg_blocking_pids(%s)", (pid,)).fetchone() or ([],)
    return _described(observer, blockers)


def wait_for_writers(observer: Connection, what: str) -> None:
    """Wait until every transaction of this database has ended that may still write to guard's tables.

    That is one that has a lock on them, and one whose statement runs: it may be about to. What begins later is not
    waited for. Of other users' sessions a role may not see whether they run a statement; then they count as if.
    Raises LockTimeoutError, naming the sessions.
    """
    deadline = time.monotonic() + CONCURRENT_TIMEOUT_MS / 1000
    waiting_for: dict[str, int] | None = None
    while waiting_for is None or waiting_for:
        rows = observer.execute(
            """
            select l.virtualtransaction, l.pid
            from pg_catalog.pg_locks as l
            inner join pg_catalog.pg_stat_activity as a on l.pid = a.pid
            where l.locktype = 'virtualxid' and l.granted and a.datname = current_database()
                and a.usename is not null and l.pid <> pg_backend_pid()
                and (
                    a.state is distinct from 'idle in transaction'
                    or exists (
                        select from pg_catalog.pg_locks as t
                        inner join pg_catalog.pg_class as c on t.relation = c.oid
                        where t.pid = l.pid and c.relnamespace = to_regnamespace('guard')
                    )
                )
            """
        ).fetchall()
        running: dict[str, int] = dict(rows)
        waiting_for = running if waiting_for is None else {v: pid for v, pid in waiting_for.items() if v in running}
        if waiting_for and time.monotonic() > deadline:
            holders = "; ".join(_described(observer, list(waiting_for.values())))
            raise LockTimeoutError(f"{what}: transactions may still write guard's rows: {holders}.")
        time.sleep(0.05 if waiting_for else 0)


def _described(observer: Connection, pids: list[int]) -> list[str]:
    rows = observer.execute(
        """
        select
            b.pid, a.usename, a.state,
            'transaction open for ' || extract(epoch from clock_timestamp() - a.xact_start)::integer || ' s',
            left(regexp_replace(a.query, '\\s+', ' ', 'g'), 160)
        from (select distinct unnest(%s::integer[])) as b (pid)
        left join pg_catalog.pg_stat_activity as a on b.pid = a.pid
        order by a.xact_start, b.pid
        """,
        (pids,),
    ).fetchall()
    return [
        f"pid {blocker} ({', '.join(filter(None, about))}): {masked(query or '')}"
        if blocker
        else "a prepared transaction (see pg_prepared_xacts)"
        for blocker, *about, query in rows
    ]


def masked(query: str) -> str:
    """A query without the strings and long numbers that it holds."""
    return _DATA.sub("***", query)
