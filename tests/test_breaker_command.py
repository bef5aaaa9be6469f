"""`guard breaker` on a database, with and without Redis."""

from __future__ import annotations

import json

import psycopg
import pytest

from guard import CircuitBreaker, CircuitOpenError, FallbackStore, PostgresStore, RedisStore
from tests.databases import RunGuard
from tests.redis_servers import RedisServer

pytestmark = pytest.mark.slow

KEY = "appointment_booking:service:7"


def open_it(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(3):
            connection.execute(
                "select guard.breaker_record(%s, a.token, 'failure', 'Timeout', 'worker:1')"
                " from guard.breaker_acquire(%s) as a",
                (KEY, KEY),
            )


def test_list_show_events(database: str, guard: RunGuard) -> None:
    assert "No circuit" in guard(database, "breaker", "list").stdout
    open_it(database)
    (listed,) = json.loads(guard(database, "breaker", "list", "--json").stdout)
    assert (listed["circuit_key"], listed["state"], listed["failure_count"]) == (KEY, "open", 3)
    assert 0 < listed["retry_after_seconds"] <= 30
    shown = json.loads(guard(database, "--json", "breaker", "show", KEY).stdout)
    assert shown["metadata"] == {"node": "worker:1", "error_class": "Timeout"}
    assert shown["last_hour"]["failures"] == 0  # a client that names its node reports its own counters
    (event,) = json.loads(guard(database, "breaker", "events", KEY, "--json").stdout)
    assert (event["from_state"], event["to_state"], event["node"]) == ("closed", "open", "worker:1")
    for command in (["list"], ["show", KEY], ["events", KEY], ["watch", "--times", "2", "--every", "0.2"]):
        done = guard(database, "breaker", *command, COLUMNS="200")
        assert done.returncode == 0, done.stderr
        assert "open" in done.stdout


def test_override_and_reset(database: str, guard: RunGuard) -> None:
    for command, state in (("open", "forced_open"), ("close", "forced_closed"), ("reset", "closed")):
        done = guard(database, "breaker", command, KEY, "--reason", f"to {command}", "--json")
        assert json.loads(done.stdout)["state"] == state, done.stderr
    with psycopg.connect(database) as connection:
        reasons = connection.execute("select reason from guard.audit_log order by id").fetchall()
    assert reasons == [("to open",), ("to close",), ("to reset",)]


def test_bad_input(database: str, guard: RunGuard) -> None:
    for arguments in (["open", KEY], ["open"], ["watch", "--every", "0"]):
        assert guard(database, "breaker", *arguments).returncode == 1
    for arguments in (["show", "nope"], ["open", "x" * 10_000, "--reason", "r"], ["open", KEY, "--reason", " "]):
        done = guard(database, "breaker", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("guard: ")
        assert len(done.stderr.splitlines()) == 1


def test_where_guard_is_not_installed(make_database, guard: RunGuard) -> None:  # type: ignore[no-untyped-def]
    done = guard(make_database(), "breaker", "list")
    assert (done.returncode, "guard apply" in done.stderr) == (1, True)


@pytest.mark.parametrize("url", ["foo://x", "redis://:s3cret@cache:s3cret/0", "redis://cache/0?db=s3cret"])
def test_address_of_redis_that_cannot_be_read(url: str, database: str, guard: RunGuard) -> None:
    done = guard(database, "--redis-url", url, "breaker", "list")
    assert done.returncode == 1
    assert done.stderr == (
        "guard: The address of Redis cannot be read. Write it as redis://user:password@host:6379/0, rediss://... or "
        "unix://...; in a password write @, : and / as %40, %3A and %2F.\n"
    )


def test_with_redis_it_is_what_decides(database: str, guard: RunGuard, redis_server: RedisServer) -> None:
    store = FallbackStore(RedisStore(redis_server.url, timeout=2), PostgresStore(database, timeout=5))
    breaker = CircuitBreaker(KEY, store=store, mode="strict")
    assert breaker.call(int) == 0
    done = guard(database, "--redis-url", redis_server.url, "breaker", "open", KEY, "--reason", "r")
    assert done.returncode == 0, done.stderr
    with pytest.raises(CircuitOpenError, match="forced_open"):
        breaker.call(int)
    guard(database, "breaker", "reset", KEY, GUARD_REDIS_URL=redis_server.url)
    assert breaker.call(int) == 0
    store.close()
