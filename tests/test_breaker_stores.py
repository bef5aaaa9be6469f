"""One set of scenarios for the state machine in Lua, in SQL and in Python: all three stores must tell the same story.

Time is moved, not waited for: in memory the clock, in Redis and PostgreSQL the moments that are stored.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from guard.stores.base import Outcome, Policy, Reply, Snapshot, Store, ticket
from guard.stores.memory import MemoryStore
from guard.stores.postgres import PostgresStore
from guard.stores.redis import RedisStore
from tests.redis_servers import RedisServer

POLICY = Policy(failure_threshold=3, success_threshold=2, cooldown=30, lease=15)
STORES = ("memory", "postgresql", "redis", "redis cluster")

_numbers = itertools.count()


@dataclass
class Subject:
    """A store, one circuit in it, and a way to let its time pass."""

    store: Store
    key: str
    pass_time: Callable[[float], None]

    def acquire(self) -> Reply:
        return self.store.acquire(self.key, POLICY.lease)

    def record(self, token: str | None, outcome: Outcome, error: str | None = None) -> Snapshot:
        assert token is not None
        return self.store.record(self.key, token, outcome, POLICY, error).snapshot

    def do(self, *outcomes: Outcome) -> Snapshot:
        for outcome in outcomes:
            admission = self.acquire()
            assert admission.allowed
            snapshot = self.record(admission.token, outcome)
        return snapshot

    @property
    def now(self) -> Snapshot:
        return self.store.snapshots([self.key]).get(self.key) or Snapshot(self.key)


@pytest.fixture(scope="module")
def module_database(databases, greenfield_template) -> Iterator[str]:  # type: ignore[no-untyped-def]
    dsn = databases.create(greenfield_template)
    yield dsn
    databases.drop(dsn)


@pytest.fixture(params=STORES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    key = f"k{next(_numbers)}"
    store: Store
    if request.param == "memory":
        moment = [0.0]
        store = MemoryStore(clock=lambda: moment[0])

        def pass_time(seconds: float) -> None:
            moment[0] += seconds

    elif request.param == "postgresql":
        dsn = request.getfixturevalue("module_database")
        store = PostgresStore(dsn, timeout=20)

        def pass_time(seconds: float) -> None:
            with psycopg.connect(dsn) as connection:
                connection.execute(
                    """
                    update guard.circuit_breaker_states
                    set open_until = open_until - %(by)s::interval, probe_until = probe_until - %(by)s::interval,
                        opened_at = opened_at - %(by)s::interval
                    where circuit_key = %(key)s
                    """,
                    {"by": f"{seconds} seconds", "key": key},
                )

    else:
        cluster = request.param == "redis cluster"
        url = request.getfixturevalue("redis_cluster") if cluster else request.getfixturevalue("shared_redis").url
        store = RedisStore(url, cluster=cluster, timeout=20)

        def pass_time(seconds: float) -> None:
            name = f"guard:breaker:{{{key}}}"
            client = store._client
            for field in ("open_until", "probe_until", "opened_at"):
                if client.hexists(name, field):
                    client.hincrby(name, field, -round(seconds * 1000))

    yield Subject(store, key, pass_time)
    store.close()


def test_an_unknown_circuit_is_closed(subject: Subject) -> None:
    admission = subject.acquire()
    assert (admission.allowed, admission.token, admission.is_probe) == (True, ticket(0), False)
    assert subject.do("success", "ignored").state == "closed"
    assert subject.store.snapshots([subject.key]) in ({}, {subject.key: Snapshot(subject.key)})


def test_three_failures_in_a_row_open_it(subject: Subject) -> None:
    assert subject.do("failure", "failure", "success").failure_count == 0
    assert subject.do("failure", "ignored", "failure").state == "closed"
    opened = subject.do("failure")
    assert (opened.state, opened.generation, opened.failure_count) == ("open", 1, 3)
    refused = subject.acquire()
    assert not refused.allowed
    assert refused.retry_after == pytest.approx(30, abs=1)


def test_it_closes_after_two_successes_of_probes(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    half = subject.do("success")
    assert (half.state, half.generation, half.success_count) == ("half_open", 2, 1)
    closed = subject.do("success")
    assert (closed.state, closed.generation, closed.failure_count) == ("closed", 3, 0)
    assert closed.opened_ago is not None
    assert closed.closed_ago is not None
    assert closed.opened_ago - closed.closed_ago == pytest.approx(30, abs=2)


def test_a_probe_that_fails_opens_it_again(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    again = subject.do("success", "failure")
    assert (again.state, again.generation, again.success_count) == ("open", 3, 0)
    assert not subject.acquire().allowed
    assert again.open_for == pytest.approx(30, abs=1)
    assert again.opened_ago == pytest.approx(30, abs=2)


def test_one_probe_at_a_time(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    probe = subject.acquire()
    assert probe.is_probe
    others = [subject.acquire() for _ in range(5)]
    assert not any(other.allowed for other in others)
    assert all(other.retry_after is not None and other.retry_after <= 1 for other in others)
    assert subject.now.probe_for == pytest.approx(15, abs=1)  # and none of them extended it


def test_the_lease_of_a_prober_that_died_ends(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    dead = subject.acquire()
    subject.pass_time(16)
    alive = subject.acquire()
    assert alive.is_probe
    assert alive.snapshot.generation == dead.snapshot.generation
    late = subject.record(dead.token, "failure", "Late")
    assert (late.state, late.probe_token) == ("half_open", alive.token)
    assert subject.record(alive.token, "success").success_count == 1


def test_a_result_after_the_lease_counts_if_nobody_took_it(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    slow = subject.acquire()
    subject.pass_time(60)
    assert subject.record(slow.token, "success").success_count == 1


def test_a_cancelled_probe_is_released(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    after = subject.do("ignored")
    assert (after.state, after.success_count, after.probe_token) == ("half_open", 0, None)
    assert subject.acquire().is_probe


def test_a_late_result_does_not_count(subject: Subject) -> None:
    early = subject.acquire()
    subject.do("failure", "failure", "failure")
    assert subject.record(early.token, "success").state == "open"
    subject.pass_time(30)
    assert subject.record(early.token, "failure").state == "open"
    subject.do("success", "success")
    assert subject.record(early.token, "failure").failure_count == 0
    assert subject.now.generation == 3


def test_overrides(subject: Subject) -> None:
    early = subject.acquire()
    assert subject.store.override(subject.key, "forced_open", "test").snapshot.state == "open"
    subject.pass_time(1_000_000)
    refused = subject.acquire()
    assert (refused.allowed, refused.snapshot.shown_state) == (False, "forced_open")
    assert subject.record(early.token, "success").shown_state == "forced_open"
    for state in ("forced_closed", "disabled"):
        assert subject.store.override(subject.key, state, "test").snapshot.shown_state == state
        assert subject.do("failure", "failure", "failure", "failure").failure_count == 0
    lifted = subject.store.override(subject.key, "none", "test").snapshot
    assert (lifted.shown_state, lifted.override_reason, lifted.override_revision) == ("closed", None, 4)
    assert subject.do("failure", "failure", "failure").state == "open"
    assert subject.store.override(subject.key, "none", "reset").snapshot.state == "closed"


def test_a_newer_generation_is_taken_over(subject: Subject) -> None:
    subject.do("failure")
    newer = Snapshot(subject.key, "open", 5, failure_count=3, open_for=20, opened_ago=10)
    assert subject.store.merge(newer).generation == 5
    assert subject.acquire().retry_after == pytest.approx(20, abs=1)
    for older in (Snapshot(subject.key, "closed", 4), Snapshot(subject.key, "closed", 5)):
        assert subject.store.merge(older).state == "open"


def test_an_override_is_newer_than_any_generation(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    told = Snapshot(subject.key, "closed", 0, override="disabled", override_reason="why", override_revision=1)
    merged = subject.store.merge(told)
    assert (merged.generation, merged.override, merged.override_reason) == (2, "disabled", "why")
    assert subject.store.merge(Snapshot(subject.key, "open", 50, open_for=9)).override == "disabled"


def test_the_probe_that_was_known_first_stays(subject: Subject) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    half = Snapshot(subject.key, "half_open", 2, probe_token=first, probe_for=10)
    assert subject.store.merge(half).probe_token == first
    assert not subject.acquire().allowed
    other = Snapshot(subject.key, "half_open", 2, probe_token=second, probe_for=10)
    assert subject.store.merge(other).probe_token == first
    over = Snapshot(subject.key, "half_open", 2, success_count=1)
    assert subject.store.merge(over, released=second).probe_token == first
    merged = subject.store.merge(over, released=first)
    assert (merged.probe_token, merged.success_count) == (None, 1)
    assert subject.store.merge(other).probe_token == second
    subject.pass_time(11)
    assert subject.store.merge(half).probe_token == first


def test_a_snapshot_survives_the_journey(subject: Subject) -> None:
    subject.do("failure", "failure", "failure")
    subject.pass_time(30)
    subject.acquire()
    there = subject.now
    memory = MemoryStore()
    back = memory.merge(there)
    for name, value in there.told().items():
        assert getattr(back, name) == (pytest.approx(value, abs=2) if isinstance(value, float) else value), name


@pytest.mark.parametrize("seed", range(3))
def test_generations_never_fall_and_probes_are_never_two(subject: Subject, seed: int) -> None:
    """A random walk: whatever comes, generations only grow, and two leases never run at once."""
    dice = random.Random(seed)  # noqa: S311  # no secret
    admissions: list[Reply] = []
    probing: str | None = None
    generation = 0
    for _ in range(60):
        match dice.randrange(7):
            case 0 | 1 | 2:
                reply = subject.acquire()
                if reply.is_probe:
                    assert probing is None
                    probing = reply.token
                if reply.allowed:
                    admissions.append(reply)
                snapshot = reply.snapshot
            case 3 | 4 if admissions:
                token = admissions.pop(dice.randrange(len(admissions))).token
                snapshot = subject.record(token, dice.choice(["success", "failure", "failure", "ignored"]))
            case 5:
                subject.pass_time(dice.choice([10, 31]))
                snapshot = subject.now
            case _:
                other = Snapshot(subject.key, "closed", dice.randrange(8), override_revision=dice.choice([0, 0, 0, 1]))
                snapshot = subject.store.merge(other)
        assert snapshot.generation >= generation
        generation = snapshot.generation
        if snapshot.probe_token is None or (snapshot.probe_for or 0) <= 0:
            probing = None


def test_keys_and_words_are_only_text(subject: Subject) -> None:
    for word in ("{}", "}{", "a b", "'; drop table guard.circuit_breaker_states; --", "ß€🙂", "x" * 200):
        key = f"{word[:190]}{uuid.uuid4().hex[:9]}"
        policy = Policy(failure_threshold=1)
        assert subject.store.record(key, ticket(0), "failure", policy, word).snapshot.state == "open"
        assert not subject.store.acquire(key, 1).allowed


def test_the_script_is_loaded_again_after_the_server_forgot_it(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, timeout=5)
    store.acquire("k", 1)
    redis_server.client.script_flush()
    assert store.acquire("k", 1).allowed
    store.close()
