"""Sessions whose statements may wait for each other: two transactions, interleaved on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import psycopg

#: Longer than any statement of a test takes, in seconds.
PATIENCE = 20.0

#: A deadlock is found soon; the server's default is a second.
OPTIONS = "-c deadlock_timeout=20ms -c lock_timeout=20s"


class Session:
    """One connection and a thread that runs its statements. What a statement came to is its SQLSTATE, or "done"."""

    def __init__(self, dsn: str, isolation: str = "read committed") -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, options=OPTIONS)
        self._watcher = psycopg.connect(dsn, autocommit=True)
        self._thread = ThreadPoolExecutor(1)
        self._isolation = isolation
        self._running: Future[str] | None = None

    def begin(self) -> None:
        """Open a transaction and take its snapshot."""
        assert self.run(f"begin isolation level {self._isolation}") == "done"
        assert self.run("select") == "done"

    def start(self, statement: str) -> None:
        """Send a statement; it may have to wait."""
        assert self._running is None
        self._running = self._thread.submit(self._execute, statement)

    def is_blocked(self) -> bool:
        """Whether the statement that was sent waits for another session; returns once it waits or has ended."""
        assert self._running is not None
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if wait([self._running], timeout=0.001).done:
                return False
            row = self._watcher.execute(
                "select cardinality(pg_blocking_pids(%s))", (self._connection.info.backend_pid,)
            ).fetchone()
            if row != (0,):
                return True
        raise TimeoutError

    def finish(self) -> str:
        """Wait for the statement that was sent."""
        assert self._running is not None
        outcome = self._running.result(PATIENCE)
        self._running = None
        return outcome

    def run(self, statement: str) -> str:
        self.start(statement)
        return self.finish()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._connection.close()
        self._watcher.close()

    def _execute(self, statement: str) -> str:
        try:
            self._connection.execute(statement.encode())
        except psycopg.Error as error:
            return error.sqlstate or "lost"
        return "done"


@contextmanager
def two_sessions(dsn: str, isolation: str = "read committed") -> Iterator[tuple[Session, Session]]:
    """Two sessions; neither has begun a transaction."""
    pair = Session(dsn, isolation), Session(dsn, isolation)
    try:
        yield pair
    finally:
        for session in pair:
            session.close()
