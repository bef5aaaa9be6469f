"""What an operator sees of the circuits, and does to them: the logic of `guard breaker`.

PostgreSQL knows every circuit; where Redis is named too, it is asked first, so that what is shown is what decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypedDict

from psycopg.rows import dict_row

from guard import database
from guard.database import Connection
from guard.errors import GuardError
from guard.stores.base import Snapshot, Store, check_key
from guard.stores.fallback import FallbackStore
from guard.stores.postgres import PostgresStore


class Circuit(TypedDict):
    """A circuit as `guard.breaker_status` gives it; `retry_after_seconds` is None unless it opened by itself."""

    circuit_key: str
    state: str
    failure_count: int
    success_count: int
    last_failure_at: datetime | None
    opened_at: datetime | None
    closed_at: datetime | None
    generation: int
    retry_after_seconds: float | None
    probing: bool
    override: str | None
    override_reason: str | None
    metadata: dict[str, Any]
    updated_at: datetime


class CircuitEvent(TypedDict):
    """What became of a circuit: transition, override or stale_result."""

    created_at: datetime
    event: str
    from_state: str
    to_state: str
    generation: int
    store: str
    node: str | None
    error_class: str | None


class Counts(TypedDict):
    """What the last hour counted."""

    successes: int
    failures: int
    timeouts: int
    ignored: int
    rejected: int


@contextmanager
def stores(dsn: str, redis_url: str | None) -> Iterator[FallbackStore]:
    """The stores that the user named, as one."""
    shared: list[Store] = [PostgresStore(dsn, timeout=5)]
    if redis_url:
        from guard.stores.redis import RedisStore  # needed by few

        shared.insert(0, RedisStore(redis_url, timeout=1))
    store = FallbackStore(*shared)
    try:
        yield store
    finally:
        store.close()


def listing(connection: Connection, store: FallbackStore, key: str | None = None) -> list[Circuit]:
    """Every circuit, or the one; those that are not closed first. Raises GuardError where guard is not installed."""
    database.require_installed(connection, "circuit_breaker_states")
    keys = [key] if key else [row[0] for row in connection.execute("select circuit_key from guard.breaker_status()")]
    store.reconcile(keys)
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "select * from guard.breaker_status(%s) order by state = 'closed' and override is null, circuit_key", (key,)
        ).fetchall()
    for row in rows:
        if row["retry_after_seconds"] is not None:
            row["retry_after_seconds"] = float(row["retry_after_seconds"])
    return rows  # type: ignore[return-value]  # the columns are those of Circuit


def details(connection: Connection, store: FallbackStore, key: str) -> tuple[Circuit, Counts]:
    """A circuit, and what was counted in the last hour. Raises GuardError for one that nobody has used."""
    check_key(key)
    found = listing(connection, store, key)
    if not found:
        raise _unknown(key)
    with connection.cursor(row_factory=dict_row) as cursor:
        counts = cursor.execute(
            """
            select
                coalesce(sum(m.successes), 0)::bigint as successes, coalesce(sum(m.failures), 0)::bigint as failures,
                coalesce(sum(m.timeouts), 0)::bigint as timeouts, coalesce(sum(m.ignored), 0)::bigint as ignored,
                coalesce(sum(m.rejected), 0)::bigint as rejected
            from guard.circuit_breaker_metrics as m
            where m.circuit_key = %s and m.minute > now() - interval '1 hour'
            """,
            (key,),
        ).fetchone()
    return found[0], counts  # type: ignore[return-value]  # the columns are those of Counts


def _unknown(key: str) -> GuardError:
    return GuardError(
        f"There is no circuit {key!r}.", fix="guard breaker list shows them; one that never failed is closed."
    )


def events(connection: Connection, key: str, limit: int) -> list[CircuitEvent]:
    """The newest events of a circuit, the newest first. Raises GuardError for one that nobody has used."""
    check_key(key)
    database.require_installed(connection, "circuit_breaker_states")
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(
            """
            select
                e.created_at, e.event, e.from_state, e.to_state, e.generation, e.store, e.node, e.error_class
            from guard.circuit_breaker_events as e
            where e.circuit_key = %s
            order by e.id desc
            limit %s
            """,
            (key, limit),
        ).fetchall()
        if not found and cursor.execute("select from guard.breaker_status(%s)", (key,)).fetchone() is None:
            raise _unknown(key)
    return found  # type: ignore[return-value]  # the columns are those of CircuitEvent


def override(connection: Connection, store: FallbackStore, key: str, state: str, reason: str) -> tuple[Snapshot, bool]:
    """Force a circuit open or closed, or lift that and start afresh (none), in every store; audited.

    Returns the circuit, and whether it was known before. Raises GuardError where there is nothing to lift.
    """
    check_key(key)
    was_known = bool(listing(connection, store, key))
    if state == "none" and not was_known:
        raise _unknown(key)
    # as the user who is connected here, and so with the user's own rights
    connection.execute("select guard.breaker_override(%s, %s, %s)", (key, state, reason))
    store.reconcile([key])
    return store.views[key].snapshot, was_known
