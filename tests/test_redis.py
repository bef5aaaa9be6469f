"""Redis and PostgreSQL together: what is shared, what is kept, and what happens when one of them is away."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from guard import CircuitBreaker, CircuitOpenError, FallbackStore, MemoryStore, PostgresStore, RedisStore
from tests.redis_servers import RedisServer

KEY = "appointment_booking:service:7"


def eventually(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until the condition holds, and return what it gives. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)
    return found


class Fleet:
    """Makes stores as processes of a fleet would each have one, and closes them."""

    def __init__(self, redis: RedisServer, database: str) -> None:
        self.redis = redis
        self.database = database
        self._made: list[FallbackStore] = []

    def store(self, timeout: float = 0.05) -> FallbackStore:
        # a database that is busy with other tests may take its time
        store = FallbackStore(RedisStore(self.redis.url, timeout=timeout), PostgresStore(self.database, timeout=5))
        self._made.append(store)
        return store

    def breaker(self, **options: Any) -> CircuitBreaker:
        return CircuitBreaker(KEY, store=self.store(), **options)

    def close(self) -> None:
        for store in self._made:
            store.close()

    def ask(self, question: str) -> list[Any]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(question.encode()).fetchall()


@pytest.fixture
def fleet(redis_server: RedisServer, database: str) -> Iterator[Fleet]:
    fleet = Fleet(redis_server, database)
    yield fleet
    fleet.close()


def fail() -> None:
    raise ConnectionError("down")


def trip(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        with pytest.raises(ConnectionError):
            breaker.call(fail)


def is_open(breaker: CircuitBreaker) -> bool:
    try:
        breaker.call(int)
    except CircuitOpenError:
        return True
    return False


@pytest.mark.parametrize("mode", ["cached", "strict"])
def test_what_one_process_sees_all_see(fleet: Fleet, mode: str) -> None:
    one, other = fleet.breaker(mode=mode), fleet.breaker(mode=mode)
    assert not is_open(other)
    trip(one)
    eventually(lambda: is_open(other))


def test_transitions_and_counters_are_kept(fleet: Fleet) -> None:
    breaker = fleet.breaker()
    assert [breaker.call(int) for _ in range(5)] == [0] * 5
    trip(breaker)
    assert is_open(breaker)
    states = "select state, failure_count, generation from guard.circuit_breaker_states where state <> 'closed'"
    assert eventually(lambda: fleet.ask(states)) == [("open", 3, 1)]
    events = "select from_state, to_state, store, node, error_class from guard.circuit_breaker_events"
    ((*transition, node, error),) = eventually(lambda: fleet.ask(events))
    assert transition == ["closed", "open", "redis"]
    assert node.endswith(f":{os.getpid()}")
    assert error == "ConnectionError"
    fleet.close()
    counters = "select sum(successes), sum(failures), sum(rejected) from guard.circuit_breaker_metrics"
    assert fleet.ask(counters) == [(5, 3, 1)]


def test_a_late_result_is_an_event(fleet: Fleet) -> None:
    store = fleet.store()
    breaker = CircuitBreaker(KEY, store=store)

    def slow() -> None:
        trip(breaker)
        fail()

    with pytest.raises(ConnectionError):
        breaker.call(slow)
    late = "select from_state, store, error_class from guard.circuit_breaker_events where event = 'stale_result'"
    assert eventually(lambda: fleet.ask(late)) == [("open", "redis", "ConnectionError")]


def test_a_healthy_circuit_and_an_open_one_need_no_command(fleet: Fleet) -> None:
    breaker = fleet.breaker(timeout=None)
    breaker.call(int)

    def commands() -> int:
        return int(fleet.redis.client.info("commandstats")["cmdstat_evalsha"]["calls"])

    before = commands()
    for _ in range(2000):
        breaker.call(int)
    trip(breaker)
    for _ in range(2000):
        assert is_open(breaker)
    assert commands() - before < 200  # the failures, and what the keeper asks a few times a second


def test_frozen_redis_costs_one_timeout(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    breaker = fleet.breaker(mode="strict", timeout=None)
    breaker.call(int)
    fleet.redis.freeze()
    spent = []
    for _ in range(50):
        begun = time.monotonic()
        breaker.call(int)
        spent.append(time.monotonic() - begun)
    assert spent[0] < 1
    assert sorted(spent)[25] < 0.05  # PostgreSQL answers; Redis is not asked again
    with caplog.at_level(logging.WARNING):
        trip(breaker)
        fleet.redis.thaw()
        eventually(lambda: "is used again" in caplog.text)
    assert RedisStore(fleet.redis.url, timeout=5).snapshots([KEY])[KEY].state == "open"
    assert is_open(breaker)


class Witness(RedisStore):
    """A Redis store that notes which threads ask it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked_by: list[str] = []

    @property
    def _client(self) -> Any:
        self.asked_by.append(threading.current_thread().name)
        return super()._client


def test_callers_never_ask_a_store_that_did_not_answer(fleet: Fleet) -> None:
    redis = Witness(fleet.redis.url)
    store = FallbackStore(redis, PostgresStore(fleet.database, timeout=5))
    caller = threading.current_thread().name
    CircuitBreaker(KEY, store=store).call(int)
    fleet.redis.freeze()
    strict = CircuitBreaker(KEY, store=store, mode="strict")
    strict.call(int)  # this one finds it away
    redis.asked_by.clear()
    numbers = itertools.count()

    def asked_again_meanwhile() -> bool:
        number = next(numbers)
        CircuitBreaker(f"new {number}", store=store).call(int)
        with pytest.raises(ConnectionError):
            CircuitBreaker(f"failing {number}", store=store, mode="strict").call(fail)
        strict.call(int)
        assert strict.snapshot().state == "closed"
        store.override(f"forced {number}", "forced_open", "test")
        return redis.asked_by.count("guard-breaker") >= 4

    eventually(asked_again_meanwhile, 30)
    assert caller not in redis.asked_by
    fleet.redis.thaw()
    eventually(lambda: strict.call(int) == 0 and caller in redis.asked_by)
    store.close()


def test_a_store_that_was_away_comes_back_also_where_nothing_was_called(fleet: Fleet) -> None:
    store = fleet.store()
    fleet.redis.freeze()
    store.override(KEY, "forced_open", "test")  # as the command does, which makes no calls
    fleet.redis.thaw()
    redis = RedisStore(fleet.redis.url, timeout=5)
    assert eventually(lambda: redis.snapshots([KEY])[KEY].override == "forced_open")


@pytest.mark.parametrize("mode", ["cached", "strict"])
def test_an_open_circuit_survives_a_redis_that_forgets(fleet: Fleet, mode: str) -> None:
    breaker = fleet.breaker(mode=mode)
    trip(breaker)
    eventually(lambda: fleet.ask("select from guard.circuit_breaker_states where state = 'open'"))
    fleet.redis.kill()
    assert is_open(breaker)
    fleet.redis.start()
    newcomer = fleet.breaker(mode=mode)
    assert is_open(breaker)
    assert is_open(newcomer)
    redis = RedisStore(fleet.redis.url, timeout=5)
    assert eventually(lambda: redis.snapshots([KEY])[KEY].generation == 1)


def test_without_any_store_the_memory_of_the_process_remembers(database: str, redis_server: RedisServer) -> None:
    redis_server.kill()
    nowhere = PostgresStore("postgresql://127.0.0.1:1/none", timeout=0.5)
    store = FallbackStore(RedisStore(redis_server.url), nowhere)
    breaker = CircuitBreaker(KEY, store=store)
    assert breaker.call(int) == 0
    trip(breaker)
    assert is_open(breaker)
    redis_server.start()
    redis = RedisStore(redis_server.url, timeout=5)
    assert eventually(lambda: redis.snapshots([KEY])[KEY].state == "open")
    assert is_open(breaker)
    store.close()


def test_what_was_decided_in_sql_reaches_redis(fleet: Fleet) -> None:
    breaker = fleet.breaker()
    assert not is_open(breaker)
    fleet.ask(f"select guard.breaker_override('{KEY}', 'forced_open', 'maintenance')")
    eventually(lambda: is_open(breaker))
    fleet.ask(f"select guard.breaker_override('{KEY}', 'none', 'over')")
    eventually(lambda: not is_open(breaker))


def test_an_override_reaches_every_store_and_is_audited(fleet: Fleet) -> None:
    breaker, store = fleet.breaker(), fleet.store()
    trip(breaker)
    store.override(KEY, "forced_closed", "false alarm")
    eventually(lambda: not is_open(breaker))
    assert fleet.ask("select reason from guard.audit_log where action = 'breaker_override'") == [("false alarm",)]
    assert RedisStore(fleet.redis.url, timeout=5).snapshots([KEY])[KEY].override == "forced_closed"


def test_an_override_made_while_postgresql_was_away_is_audited_later(fleet: Fleet) -> None:
    RedisStore(fleet.redis.url, timeout=5).override(KEY, "forced_open", "emergency")
    breaker = fleet.breaker()
    assert is_open(breaker)
    audited = "select reason, after ->> 'override' from guard.audit_log where action = 'breaker_override'"
    assert eventually(lambda: fleet.ask(audited)) == [("emergency", "forced_open")]


def test_a_probe_that_another_store_knows_of_prevents_a_second(fleet: Fleet) -> None:
    here = fleet.store()
    breaker = CircuitBreaker(KEY, store=here, mode="strict", cooldown=0)
    trip(breaker)
    here.reconcile([KEY])
    there = PostgresStore(fleet.database, timeout=5)
    assert there.acquire(KEY, 60).is_probe
    assert is_open(breaker)


def test_noise_on_the_channel_is_no_harm(fleet: Fleet) -> None:
    one, other = fleet.breaker(), fleet.breaker()
    one.call(int)
    other.call(int)
    for noise in ("", "rubbish", "[]", '{"key": 7}', '{"key": "k", "snapshot": "x"}'):
        fleet.redis.client.publish("guard:breaker:changes", noise)
    trip(one)
    eventually(lambda: is_open(other))


def test_a_forked_process_goes_on(fleet: Fleet) -> None:
    breaker = fleet.breaker()
    trip(breaker)
    pid = os.fork()
    if pid == 0:
        os._exit(7 if is_open(breaker) and breaker.snapshot().state == "open" else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert is_open(breaker)


def test_generations_of_a_fleet_never_fall(fleet: Fleet) -> None:
    """Stores that are changed apart from each other, and brought together again and again."""
    redis, postgres = RedisStore(fleet.redis.url, timeout=5), PostgresStore(fleet.database, timeout=5)
    store = FallbackStore(redis, postgres)
    memory = MemoryStore()
    seen = [0]
    for turn in range(12):
        for number, single in enumerate((redis, postgres, memory)):
            if (turn + number) % 3 == 0:
                single.override(KEY, ("forced_open", "none", "disabled")[turn % 3], "test")  # type: ignore[attr-defined]
        for snapshot in memory.snapshots([KEY]).values():
            redis.merge(snapshot)
        store.reconcile([KEY])
        store.reconcile([KEY])
        found = {single.snapshots([KEY])[KEY] for single in (redis, postgres)}
        assert len({(s.generation, s.override, s.override_revision) for s in found}) == 1
        seen.append(found.pop().generation)
        assert seen[-1] >= seen[-2]
    store.close()


def test_a_strict_breaker_sees_at_once_what_others_do_in_postgresql(database: str) -> None:
    store = PostgresStore(database, timeout=5)
    breaker = CircuitBreaker(KEY, store=store, mode="strict", timeout=None)
    with psycopg.connect(database, autocommit=True) as connection:

        def other(statement: str) -> None:
            connection.execute(statement.encode(), (KEY,))

        fails = "select guard.breaker_record(a.k, guard.breaker_ticket(0), 'failure') from (select %s as k) as a"
        assert breaker.call(int) == 0
        other(fails)
        assert breaker.call(int) == 0  # and this success starts the count anew
        other(fails)
        other(fails)
        assert breaker.snapshot().failure_count == 2
        other(fails)
        assert is_open(breaker)
        other("select guard.breaker_override(%s, 'forced_closed', 'r')")
        assert breaker.call(int) == 0
        other("select guard.breaker_override(%s, 'forced_open', 'r')")
        assert is_open(breaker)
        other("select guard.breaker_override(%s, 'none', 'r')")
        assert breaker.call(int) == 0
    FallbackStore.of(store).close()
