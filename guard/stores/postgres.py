"""Circuits in PostgreSQL: durable, and complete by itself. A thin caller of guard.breaker_acquire and its kin.

Works through PgBouncer in transaction mode: every call is one statement, nothing is prepared, no session state.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from guard import database, deadline
from guard.errors import OperationTimeoutError, from_database
from guard.stores.base import Outcome, Policy, Reply, Snapshot, StoreUnavailableError

# breaker_snapshots is volatile: it sees what the function before it in the same statement has done
_ACQUIRE = """
with answer as materialized (select * from guard.breaker_acquire(%(key)s, %(lease)s::numeric))
select a.allowed, a.token::text, a.retry_after_seconds, (select snapshot from guard.breaker_snapshots(array[%(key)s]))
from answer as a
"""
_RECORD = """
with answer as materialized (
    select state from guard.breaker_record(
        %(key)s, %(token)s::uuid, %(outcome)s, %(error)s, %(node)s, %(failures)s::integer, %(successes)s::integer,
        %(cooldown)s::numeric
    )
)
select (select snapshot from guard.breaker_snapshots(array[%(key)s])) from answer where state is not null
"""
_BRIEF = """
select s.override, s.state, s.generation, s.failure_count, s.override_revision
from guard.circuit_breaker_states as s
where s.circuit_key = %(key)s
"""
_OVERRIDE = """
with answer as materialized (select state from guard.breaker_override(%(key)s, %(state)s, %(reason)s))
select (select snapshot from guard.breaker_snapshots(array[%(key)s])) from answer where state is not null
"""


class PostgresStore:
    """Circuits in the database at `dsn`, where guard is applied. `timeout` bounds each call, in seconds."""

    name = "postgresql"
    shared = True

    def __init__(self, dsn: str, *, timeout: float = 0.5) -> None:
        self._dsn = dsn
        self._timeout = timeout
        self._idle: deque[psycopg.Connection[Any]] = deque(maxlen=8)

    def acquire(self, key: str, lease: float) -> Reply:
        allowed, token, retry_after, snapshot = self._one(_ACQUIRE, {"key": key, "lease": lease})
        return Reply(
            snapshot=self._snapshot(key, snapshot),
            allowed=allowed,
            token=token,
            retry_after=None if retry_after is None else float(retry_after),
        )

    def record(self, key: str, token: str, outcome: Outcome, policy: Policy, error: str | None = None) -> Reply:
        (snapshot,) = self._one(
            _RECORD,
            {
                "key": key,
                "token": token,
                "outcome": outcome,
                "error": error,
                "node": node(),
                "failures": policy.failure_threshold,
                "successes": policy.success_threshold,
                "cooldown": policy.cooldown,
            },
        )
        return Reply(self._snapshot(key, snapshot))

    def override(self, key: str, state: str, reason: str) -> Reply:
        (snapshot,) = self._one(_OVERRIDE, {"key": key, "state": state, "reason": reason})
        return Reply(self._snapshot(key, snapshot))

    def snapshots(self, keys: Iterable[str]) -> dict[str, Snapshot]:
        rows = self._run(
            "select circuit_key, snapshot from guard.breaker_snapshots(%(keys)s::text[])", {"keys": list(keys)}
        )
        return {key: self._snapshot(key, snapshot) for key, snapshot in rows}

    def unchanged(self, snapshot: Snapshot) -> bool:
        """Whether the circuit is as in this snapshot, so that it need not be acquired: a plain read, and cheaper."""
        s = snapshot
        known = (s.override, s.state, s.generation, s.failure_count, s.override_revision)
        rows = self._run(_BRIEF, {"key": s.key})
        return rows == [known] or (not rows and known == (None, "closed", 0, 0, 0))

    def merge(self, snapshot: Snapshot, released: str | None = None) -> Snapshot:
        (merged,) = self._one(
            "select guard.breaker_merge(%(key)s, %(snapshot)s::jsonb, %(released)s::uuid, %(node)s)",
            {"key": snapshot.key, "snapshot": json.dumps(snapshot.told()), "released": released, "node": node()},
        )
        return self._snapshot(snapshot.key, merged)

    def report(self, events: Iterable[Mapping[str, Any]], counts: Iterable[Mapping[str, Any]]) -> None:
        """Keep what was decided elsewhere, and what this process counted; see guard.breaker_report."""
        self._run(
            "select guard.breaker_report(%(events)s::jsonb, %(counts)s::jsonb, %(node)s)",
            {"events": json.dumps(list(events)), "counts": json.dumps(list(counts)), "node": node()},
        )

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def forget(self) -> None:
        """Give up connections that belong to the parent process, without closing them."""
        self._idle.clear()

    @staticmethod
    def _snapshot(key: str, values: Mapping[str, Any] | None) -> Snapshot:
        return Snapshot.read(key, values or {})

    def _one(self, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        (row,) = self._run(query, parameters)
        return row

    def _run(self, query: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        used: list[psycopg.Connection[Any]] = []
        try:
            return deadline.run(self._execute, (query, parameters, used), {}, self._timeout)
        except OperationTimeoutError as error:
            for connection in used:
                _abandon(connection)
            raise StoreUnavailableError(f"PostgreSQL did not answer within {self._timeout:g} s.") from error
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith("ZG2"):
                raise from_database(error) from error
            raise StoreUnavailableError(f"PostgreSQL did not answer: {from_database(error).message}") from error

    def _execute(
        self, query: str, parameters: Mapping[str, Any], used: list[psycopg.Connection[Any]]
    ) -> list[tuple[Any, ...]]:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = database.connect(self._dsn)
                pooled = False
            else:
                pooled = True
            used.append(connection)
            try:
                rows = connection.execute(query.encode(), parameters).fetchall()
            except psycopg.OperationalError:
                connection.close()
                if pooled:
                    continue  # the server was restarted since: what is left in the pool is of no use either
                raise
            except psycopg.Error:
                self._idle.append(connection)
                raise
            self._idle.append(connection)
            return rows


def _abandon(connection: psycopg.Connection[Any]) -> None:
    """Wake the thread that waits for a server which does not answer: it finds the connection lost, and ends."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def node() -> str:
    """Who reports: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"
