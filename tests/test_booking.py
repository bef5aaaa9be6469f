"""No failure, timeout or crash between the calendar and the database loses a booking or invents one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.types.json import Jsonb

from examples.calendar_stub import Calendar, running
from guard import CircuitBreaker, CircuitOpenError, PostgresStore
from guard.booking import BookingGuard, Request
from guard.stores.fallback import FallbackStore
from tests.databases import PROJECT, RunGuard

T = TypeVar("T")


class Calls:
    """No circuit breaker: calls."""

    def call(self, operation: Callable[..., T], /, *args: Any) -> T:
        return operation(*args)


@pytest.fixture
def calendar() -> Iterator[Calendar]:
    with running() as server:
        yield server


@pytest.fixture
def booking(database: str) -> str:
    """A database with calls 1 to 60 of one company."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("insert into companies (id, name) values (1, 'A')")
        connection.execute("insert into staff (id, company_id, name) values (1, 1, 'S')")
        connection.execute(
            "insert into calls (id, company_id, direction) select g, 1, 'inbound' from generate_series(1, 60) g"
        )
    return database


def remote(calendar: Calendar) -> Callable[[Request, str], str]:
    def book(request: Request, key: str) -> str:
        body = json.dumps({"key": key, "request": request}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{calendar.url}/bookings", body), timeout=5) as answer:
            return str(json.load(answer)["uid"])

    return book


def never(_: Request, key: str) -> str:
    raise AssertionError(f"the calendar was called again for {key}")


def request(call_id: int) -> Request:
    return {"staff_id": 1, "starts_at": f"2030-01-{call_id % 28 + 1:02}T09:00:00Z", "ends_at": None}


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def assert_nothing_is_lost(dsn: str, calendar: Calendar) -> None:
    """Every remote booking has an appointment or a review item, none has two, and no call claims what is not."""
    recorded = [uid for (uid,) in rows(dsn, "select calcom_v2_booking_id from appointments")]
    named = "select jsonb_path_query(context, 'lax $.**.booking_id') #>> '{}' from guard.manual_review_queue"
    asked = {uid for (uid,) in rows(dsn, named)}
    assert len(recorded) == len(set(recorded))
    for uid in calendar.bookings.values():
        assert uid in recorded or uid in asked
    assert set(recorded) <= set(calendar.bookings.values())
    phantoms = """
        select id from calls c
        where appointment_made and not exists (select from appointments a where a.call_id = c.id)
    """
    assert rows(dsn, phantoms) == []
    assert (
        rows(dsn, "select key from guard.booking_intents where state in ('started', 'remote_booked', 'recorded')") == []
    )


def test_books(booking: str, calendar: Calendar) -> None:
    result = BookingGuard(booking, Calls()).book(1, request(1), remote(calendar), key="k1")
    assert (result.state, result.booking_id) == ("booked", "uid_1")
    assert rows(booking, "select appointment_made, session_outcome from calls where id = 1") == [
        (True, "appointment_booked")
    ]
    assert_nothing_is_lost(booking, calendar)


def test_books_beside_an_application_that_writes_its_flags(adopted: str, calendar: Calendar) -> None:
    """Guard as it begins on tables that it found: it observes."""
    call_id = rows(adopted, "select max(id) from calls where appointment_made is not true")[0][0]
    result = BookingGuard(adopted, Calls()).book(call_id, {}, remote(calendar), key="k1")
    assert (result.state, result.booking_id) == ("booked", "uid_1")
    assert rows(adopted, "select call_id from appointments where calcom_v2_booking_id = 'uid_1'") == [(call_id,)]
    assert rows(adopted, "select success, reason from guard.validation_metrics") == [(True, None)]


def test_the_same_key_books_once(booking: str, calendar: Calendar) -> None:
    guard = BookingGuard(booking, Calls())
    first = guard.book(1, request(1), remote(calendar), key="k1")

    assert guard.book(1, request(1), never, key="k1") == first
    with pytest.raises(psycopg.Error) as error:
        guard.book(1, request(2), never, key="k1")
    assert error.value.sqlstate == "ZG310"


def test_many_threads_one_key(booking: str, calendar: Calendar) -> None:
    states: list[str] = []
    guard = BookingGuard(booking, Calls())
    threads = [
        threading.Thread(target=lambda: states.append(guard.book(1, request(1), remote(calendar), key="k1").state))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states.count("booked") >= 1
    assert set(states) <= {"booked", "pending"}
    assert rows(booking, "select count(*) from appointments") == [(1,)]
    assert_nothing_is_lost(booking, calendar)


def test_a_calendar_that_fails(booking: str, calendar: Calendar) -> None:
    calendar.mode = "fail"
    result = BookingGuard(booking, Calls()).book(1, request(1), remote(calendar), key="k1")
    assert result.state == "failed"
    assert rows(booking, "select reason, priority from guard.manual_review_queue") == [("calcom_booking_failed", 2)]
    assert rows(booking, "select kind from guard.notifications") == [("booking_rolled_back",)]
    assert_nothing_is_lost(booking, calendar)


@pytest.fixture
def store(booking: str) -> Iterator[PostgresStore]:
    postgres = PostgresStore(booking, timeout=5)
    yield postgres
    FallbackStore.of(postgres).close()


def test_an_open_circuit_queues_and_the_calendar_is_left_alone(
    booking: str, calendar: Calendar, store: PostgresStore
) -> None:
    calendar.schedule.extend(["fail", "fail", "fail"])
    guard = BookingGuard(booking, CircuitBreaker("calendar", store=store, cooldown=1))
    for call in (1, 2, 3):
        assert guard.book(call, request(call), remote(calendar), key=f"k{call}").state == "failed"
    result = guard.book(4, request(4), remote(calendar), key="k4")
    assert (result.state, result.reason) == ("queued", "circuit_open")
    assert 0 < (result.retry_after or 0) <= 1
    assert calendar.asked == ["k1", "k2", "k3"]
    assert rows(booking, "select call_id, reason, status from guard.manual_review_queue order by call_id") == [
        (call, "calcom_booking_failed", "pending") for call in (1, 2, 3, 4)
    ]
    assert rows(booking, "select requires_manual_processing, appointment_made from calls where id = 4") == [
        (True, False)
    ]
    time.sleep(1.1)
    for call in (5, 6):
        assert guard.book(call, request(call), remote(calendar), key=f"k{call}").state == "booked"
    assert rows(booking, "select state from guard.breaker_status('calendar')") == [("closed",)]
    assert_nothing_is_lost(booking, calendar)


def test_timeouts_open_the_circuit_and_recovery_asks(booking: str, calendar: Calendar, store: PostgresStore) -> None:
    calendar.mode = "hang"
    guard = BookingGuard(booking, CircuitBreaker("calendar", store=store, failure_threshold=2, timeout=0.2))
    results = [guard.book(call, request(call), remote(calendar), key=f"k{call}") for call in (1, 2, 3)]
    assert [(r.state, r.reason) for r in results] == [
        ("queued", "outcome_unknown"),
        ("queued", "outcome_unknown"),
        ("queued", "circuit_open"),
    ]
    assert calendar.asked == ["k1", "k2"]
    # nobody asked again while it is not known: the key is taken
    assert guard.book(1, request(1), remote(calendar), key="k1").state == "pending"
    assert guard.recover(older_than_seconds=0, ask=calendar.bookings.get) == [
        ("k1", "failed", "queued"),
        ("k2", "failed", "queued"),
    ]
    assert rows(booking, "select call_id from guard.manual_review_queue order by 1") == [(1,), (2,), (3,)]
    assert_nothing_is_lost(booking, calendar)


def wait_until(dsn: str, query: str) -> None:
    until = time.monotonic() + 20
    while not rows(dsn, query):
        assert time.monotonic() < until, f"it did not come true: {query}"
        time.sleep(0.05)


@pytest.mark.parametrize("asked_too_early", [False, True])
def test_what_was_booked_after_the_timeout_is_recorded(
    booking: str, calendar: Calendar, store: PostgresStore, asked_too_early: bool
) -> None:
    calendar.mode = "late"
    guard = BookingGuard(booking, CircuitBreaker("calendar", store=store, timeout=0.2))
    assert guard.book(1, request(1), remote(calendar), key="k1").reason == "outcome_unknown"
    assert calendar.bookings == {"k1": "uid_1"}
    if asked_too_early:
        # the calendar did not know yet
        assert guard.recover(older_than_seconds=0, ask=lambda _: None) == [("k1", "failed", "queued")]
    # the answer comes: nobody waits for it, and it is remembered
    wait_until(booking, "select from guard.booking_intents where state = 'remote_booked' and booking_id = 'uid_1'")
    assert guard.recover(older_than_seconds=0) == [("k1", "validated", "recorded")]
    assert rows(booking, "select call_id, calcom_v2_booking_id from appointments") == [(1, "uid_1")]
    assert rows(booking, "select appointment_made, session_outcome from calls where id = 1") == [
        (True, "appointment_booked")
    ]
    assert_nothing_is_lost(booking, calendar)


def test_a_connection_that_breaks_off_may_have_booked(booking: str, calendar: Calendar, store: PostgresStore) -> None:
    calendar.schedule.append("die")
    guard = BookingGuard(booking, CircuitBreaker("calendar", store=store))
    result = guard.book(1, request(1), remote(calendar), key="k1")
    assert (result.state, result.reason) == ("queued", "outcome_unknown")
    assert guard.recover(older_than_seconds=0, ask=calendar.bookings.get) == [("k1", "validated", "recorded")]
    assert_nothing_is_lost(booking, calendar)


def test_a_calendar_that_is_not_there(booking: str, calendar: Calendar, store: PostgresStore) -> None:
    guard = BookingGuard(booking, CircuitBreaker("calendar", store=store))
    with running() as gone:
        pass
    assert guard.book(1, request(1), remote(gone), key="k1").state == "failed"
    assert_nothing_is_lost(booking, calendar)


def test_recovery_leaves_alone_who_is_still_at_work(booking: str, calendar: Calendar) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('old', 1, '{}')")
        connection.execute("update guard.booking_intents set updated_at = now() - interval '5 minutes'")
        connection.execute("select guard.begin_booking('young', 2, '{}')")
    calendar.book("old")
    guard = BookingGuard(booking, Calls())
    assert guard.recover(ask=calendar.bookings.get) == [("old", "validated", "recorded")]
    assert rows(booking, "select key, state from guard.booking_intents order by key") == [
        ("old", "validated"),
        ("young", "started"),
    ]


def test_what_the_calendar_holds_and_cannot_be_recorded_goes_to_a_person(booking: str, calendar: Calendar) -> None:
    taken = {"staff_id": 1, "starts_at": "2030-01-01T09:00:00Z", "ends_at": "2030-01-01T10:00:00Z"}
    guard = BookingGuard(booking, Calls())
    assert guard.book(1, taken, remote(calendar), key="k1").state == "booked"
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k2', 2, %s)", (Jsonb(taken),))
    calendar.book("k2")
    assert guard.recover(older_than_seconds=0, ask=calendar.bookings.get) == [("k2", "failed", "queued")]
    assert_nothing_is_lost(booking, calendar)


def test_recovery_waits_for_nobody_and_rolls_nothing_back_for_it(booking: str, calendar: Calendar) -> None:
    """A lock that is not to be had says nothing about the booking."""
    with psycopg.connect(booking, autocommit=True) as connection, psycopg.connect(booking) as writer:
        for key, call in (("k1", 1), ("k2", 2)):
            connection.execute("select guard.begin_booking(%s, %s, '{}')", (key, call))
            connection.execute("select guard.mark_remote_booked(%s, %s)", (key, calendar.book(key)))
        writer.execute("update calls set status = 'ended' where id = 1")
        connection.execute("set lock_timeout = '100ms'")
        recover = "select key, state, action from guard.recover_intents('0 seconds')"
        assert connection.execute(recover).fetchall() == [
            ("k1", "remote_booked", "postponed"),
            ("k2", "validated", "recorded"),
        ]
        writer.commit()
        assert connection.execute(recover).fetchall() == [("k1", "validated", "recorded")]
    assert rows(booking, "select * from guard.manual_review_queue") == []
    assert_nothing_is_lost(booking, calendar)


@pytest.mark.slow
def test_the_job_recovers_a_pile(booking: str, guard: RunGuard) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute(
            "insert into guard.booking_intents (key, call_id, request, request_hash, updated_at)"
            " select 'k' || g, 1, '{}', '', now() - interval '1 hour' from generate_series(1, 501) as g"
        )
    done = json.loads(guard(booking, "jobs", "run", "recover_intents", "--json").stdout)
    assert (done["steps"], done["result"]) == (3, {"recovered": 0, "queued": 501, "postponed": 0})


@pytest.mark.slow
def test_the_job_recovers_what_nobody_recovers(booking: str, calendar: Calendar, guard: RunGuard) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking(k, k::int, '{}') from unnest('{1,2,3}'::text[]) as k")
        connection.execute("select guard.mark_remote_booked('1', %s)", (calendar.book("1"),))
        connection.execute("update guard.booking_intents set updated_at = now() - interval '14 minutes'")
        connection.execute(
            "update guard.booking_intents set updated_at = now() - interval '16 minutes' where key = '2'"
        )
    done = json.loads(guard(booking, "jobs", "run", "recover_intents", "--json").stdout)
    assert done["result"] == {"recovered": 1, "queued": 1, "postponed": 0}
    assert rows(booking, "select key, state, failure_reason from guard.booking_intents order by key") == [
        ("1", "validated", None),
        ("2", "failed", "outcome_unknown"),
        ("3", "started", None),
    ]
    assert guard(booking, "settings", "set", "outcome_unknown_minutes", "5").returncode == 0
    done = json.loads(guard(booking, "jobs", "run", "recover_intents", "--json").stdout)
    assert done["result"] == {"recovered": 0, "queued": 1, "postponed": 0}
    assert_nothing_is_lost(booking, calendar)


def test_the_command_asks_the_calendar(booking: str, calendar: Calendar, guard: RunGuard) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k1', 1, '{}'), guard.begin_booking('k2', 2, '{}')")
    calendar.book("k1")
    recover = ("intents", "recover", "--older-than", "0", "--json", "--ask")
    environment = {"CALENDAR_URL": calendar.url, "PYTHONPATH": str(PROJECT)}
    recovered = guard(booking, *recover, "examples.calendar_stub:find", **environment)
    assert json.loads(recovered.stdout) == [
        {"key": "k1", "state": "validated", "action": "recorded"},
        {"key": "k2", "state": "failed", "action": "queued"},
    ]
    assert_nothing_is_lost(booking, calendar)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:find", "no_such_module:find cannot be loaded: ModuleNotFoundError"),
        ("json:find", "json:find cannot be loaded: AttributeError"),
        ("json:__doc__", "json:__doc__ is no function"),
        ("; drop table", "cannot be loaded: ValueError"),
    ],
)
def test_the_command_says_whom_it_cannot_ask(booking: str, guard: RunGuard, name: str, message: str) -> None:
    refused = guard(booking, "intents", "recover", "--ask", name)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_refused_record_goes_to_a_person(booking: str, calendar: Calendar) -> None:
    taken = {"staff_id": 1, "starts_at": "2030-01-01T09:00:00Z", "ends_at": "2030-01-01T10:00:00Z"}
    guard = BookingGuard(booking, Calls())
    assert guard.book(1, taken, remote(calendar), key="k1").state == "booked"
    result = guard.book(2, taken, remote(calendar), key="k2")
    assert (result.state, result.booking_id, result.reason) == ("queued", "uid_2", "23P01")
    assert_nothing_is_lost(booking, calendar)


class Open:
    """A circuit that is open."""

    def call(self, *_: Any) -> Any:
        raise CircuitOpenError("calendar", "open", 12.0)


REFUSED = {"staff_id": 999, "starts_at": "2030-01-01T09:00:00Z"}


@pytest.mark.parametrize(
    ("breaker", "mode", "wanted", "result"),
    [
        (Open(), "ok", {}, ("queued", None, "circuit_open")),
        (Calls(), "fail", {}, ("failed", None, "HTTPError")),
        (Calls(), "ok", REFUSED, ("queued", "uid_1", "23503")),
        (Calls(), "ok", {}, ("booked", "uid_1", None)),
    ],
)
def test_the_same_key_gives_the_first_result(
    booking: str, calendar: Calendar, breaker: Any, mode: str, wanted: Request, result: tuple[Any, ...]
) -> None:
    calendar.mode = mode
    guard = BookingGuard(booking, breaker)
    first = guard.book(1, wanted, remote(calendar), key="k1")
    assert (first.state, first.booking_id, first.reason) == result
    assert guard.book(1, wanted, never, key="k1") == replace(first, retry_after=None)
    assert_nothing_is_lost(booking, calendar)


def test_an_outcome_that_stays_unknown_is_told_again(booking: str, calendar: Calendar) -> None:
    calendar.mode = "die"
    guard = BookingGuard(booking, Calls())
    first = guard.book(1, {}, remote(calendar), key="k1")
    assert (first.state, first.reason) == ("queued", "outcome_unknown")
    guard.recover(older_than_seconds=0)
    assert guard.book(1, {}, never, key="k1") == first


def test_without_a_key_the_calendar_is_told_one(booking: str, calendar: Calendar) -> None:
    calendar.mode = "die"
    guard = BookingGuard(booking, Calls())
    result = guard.book(1, request(1), remote(calendar))
    assert result.reason == "outcome_unknown"
    assert calendar.asked == [result.key]
    assert guard.recover(older_than_seconds=0, ask=calendar.bookings.get) == [(result.key, "validated", "recorded")]
    assert_nothing_is_lost(booking, calendar)


def test_a_number_is_an_id(booking: str) -> None:
    result = BookingGuard(booking, Calls()).book(1, request(1), lambda *_: 123456, key="k1")
    assert (result.state, result.booking_id) == ("booked", "123456")


@pytest.mark.parametrize("answer", [None, "", "x" * 201, "a\0b", {"uid": "uid_1"}])
def test_what_is_no_id_may_be_a_booking(booking: str, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    guard = BookingGuard(booking, Calls())
    result = guard.book(1, request(1), lambda *_: answer, key="k1")
    assert (result.state, result.reason) == ("queued", "outcome_unknown")
    assert "nobody knows whether the calendar booked k1" in caplog.text
    assert guard.recover(older_than_seconds=0) == [("k1", "failed", "queued")]
    assert rows(booking, "select context ->> 'key' from guard.manual_review_queue") == [("k1",)]


def test_connections_that_break_while_the_calendar_books(booking: str, calendar: Calendar) -> None:
    def book(wanted: Request, key: str) -> str:
        rows(
            booking,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()",
        )
        return remote(calendar)(wanted, key)

    assert BookingGuard(booking, Calls()).book(1, request(1), book, key="k1").state == "booked"
    assert_nothing_is_lost(booking, calendar)


FIRST_WRITE = """
    create sequence writes;
    grant usage on sequence writes to public;
    create function first_write() returns trigger language plpgsql as $$
    begin
        if nextval('public.writes') = 1 then {action}; end if;
        return new;
    end $$;
    create trigger first_write before {event} for each row execute function first_write();
    alter function first_write() security definer;
"""


BREAK_OFF = "perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(10)"


@pytest.mark.parametrize(
    "action",
    [
        BREAK_OFF,
        "raise exception using errcode = 'deadlock_detected'",
        "raise exception using errcode = 'serialization_failure'",
    ],
)
def test_a_write_that_breaks_off_is_done_again(booking: str, calendar: Calendar, action: str) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute(FIRST_WRITE.format(action=action, event="insert on appointments").encode())
    result = BookingGuard(booking, Calls()).book(1, request(1), remote(calendar), key="k1")
    assert (result.state, result.booking_id) == ("booked", "uid_1")
    assert rows(booking, "select last_value from writes") == [(2,)]
    assert_nothing_is_lost(booking, calendar)


def test_a_late_answer_that_breaks_off_is_remembered(booking: str, calendar: Calendar, store: PostgresStore) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute(FIRST_WRITE.format(action=BREAK_OFF, event="update on guard.booking_intents").encode())
    calendar.mode = "late"
    guard = BookingGuard(booking, CircuitBreaker("calendar", store=store, timeout=0.2))
    assert guard.book(1, request(1), remote(calendar), key="k1").reason == "outcome_unknown"
    wait_until(booking, "select from guard.booking_intents where state = 'remote_booked' and booking_id = 'uid_1'")
    assert guard.recover(older_than_seconds=0) == [("k1", "validated", "recorded")]
    assert_nothing_is_lost(booking, calendar)


@pytest.mark.slow
def test_a_database_that_is_away_after_the_calendar_has_booked(
    booking: str, calendar: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    server, _, name = booking.rpartition("/")

    def accepting(connections: str) -> None:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"alter database {name} allow_connections {connections}".encode())

    def book(wanted: Request, key: str) -> str:
        accepting("false")
        return remote(calendar)(wanted, key)

    guard = BookingGuard(booking, Calls())
    try:
        result = guard.book(1, request(1), book, key="k1")
    finally:
        accepting("true")
    assert (result.state, result.booking_id, result.reason) == ("pending", "uid_1", "not_recorded")
    assert "the calendar booked k1 as uid_1" in caplog.text
    assert guard.recover(older_than_seconds=0, ask=calendar.bookings.get) == [("k1", "validated", "recorded")]
    assert_nothing_is_lost(booking, calendar)


def test_a_booking_that_is_cancelled_before_it_is_recorded(booking: str, calendar: Calendar) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute(
            """
            create function cancel() returns trigger language plpgsql as $$
            begin
                perform guard.handle_booking_event(jsonb_build_object(
                    'triggerEvent', 'BOOKING_CANCELLED', 'createdAt', now(),
                    'payload', jsonb_build_object('uid', new.booking_id)
                ));
                return null;
            end $$;
            create trigger cancel after update on guard.booking_intents for each row
            when (new.state = 'remote_booked') execute function cancel();
            """
        )
    guard = BookingGuard(booking, Calls())
    result = guard.book(1, request(1), remote(calendar), key="k1")
    assert (result.state, result.booking_id) == ("cancelled", "uid_1")
    assert guard.book(1, request(1), never, key="k1") == result
    assert rows(booking, "select from guard.manual_review_queue") == []
    assert rows(booking, "select from appointments where status <> 'cancelled'") == []


def test_a_second_booking_for_one_key_goes_to_a_person(booking: str, calendar: Calendar) -> None:
    """While this process waited, recovery asked the calendar, and heard of another booking."""

    def book(wanted: Request, key: str) -> str:
        with psycopg.connect(booking, autocommit=True) as connection:
            connection.execute("select guard.mark_remote_booked(%s, %s)", (key, calendar.book("other")))
            connection.execute("select guard.recover_intents('0 seconds')")
        return remote(calendar)(wanted, key)

    result = BookingGuard(booking, Calls()).book(1, request(1), book, key="k1")
    assert (result.state, result.booking_id) == ("booked", "uid_1")
    assert rows(booking, "select resolved from guard.process_review_queue()") == [(0,)]
    assert rows(booking, "select context ->> 'booking_id', status from guard.manual_review_queue") == [
        ("uid_2", "pending")
    ]
    assert_nothing_is_lost(booking, calendar)


def test_a_second_booking_for_one_key_of_a_call_that_is_gone(booking: str, calendar: Calendar) -> None:
    def ask(key: str) -> str:
        with psycopg.connect(booking, autocommit=True) as connection:
            connection.execute("select guard.mark_remote_booked(%s, %s)", (key, calendar.book("other")))
            connection.execute("select guard.recover_intents('0 seconds')")
            connection.execute("delete from appointments")
            connection.execute("delete from calls where id = 1")
        return calendar.book(key)

    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k1', 1, '{}')")
    assert BookingGuard(booking, Calls()).recover(older_than_seconds=0, ask=ask) == [("k1", "validated", "none")]
    assert rows(booking, "select call_id, subject, status from guard.manual_review_queue") == [
        (None, "uid_2", "pending")
    ]


def test_a_calendar_that_cannot_be_asked_stops_nothing(booking: str, calendar: Calendar) -> None:
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k' || n, n, '{}') from generate_series(1, 4) as n")
        connection.execute("select guard.mark_remote_booked('k4', %s)", (calendar.book("k4"),))
    calendar.book("k2")

    def ask(key: str) -> str | None:
        if key == "k1":
            raise TimeoutError("the calendar is down")
        return calendar.bookings.get(key)

    guard = BookingGuard(booking, Calls())
    assert guard.recover(older_than_seconds=0, ask=ask) == [
        ("k4", "validated", "recorded"),
        ("k1", "started", "ask_failed"),
        ("k2", "validated", "recorded"),
        ("k3", "failed", "queued"),
    ]
    assert rows(booking, "select call_id, context ->> 'key', context ->> 'cause' from guard.manual_review_queue") == [
        (3, "k3", "not_booked")
    ]


def test_the_answer_comes_while_the_calendar_is_asked(booking: str, calendar: Calendar) -> None:
    """What it knew nothing of a moment ago is recorded, and not given up."""
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k1', 1, '{}')")

    def ask(key: str) -> None:
        rows(booking, f"select guard.mark_remote_booked('{key}', '{calendar.book(key)}')")

    guard = BookingGuard(booking, Calls())
    assert guard.recover(older_than_seconds=0, ask=ask) == [("k1", "validated", "recorded")]
    assert_nothing_is_lost(booking, calendar)


def test_the_command_says_when_the_calendar_could_not_be_asked(booking: str, guard: RunGuard, tmp_path: Path) -> None:
    (tmp_path / "gateway.py").write_text(
        "def number(key):\n    return 5\ndef down(key):\n    raise ConnectionError('calendar of +4915112345678')\n"
    )
    with psycopg.connect(booking, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k1', 1, '{}')")
    recover = ("intents", "recover", "--older-than", "0", "--json", "--ask")
    environment = {"PYTHONPATH": str(tmp_path)}
    down = guard(booking, *recover, "gateway:down", **environment)
    assert (down.returncode, json.loads(down.stdout)) == (
        2,
        [{"key": "k1", "state": "started", "action": "ask_failed"}],
    )
    assert "k1" in down.stderr
    assert "ConnectionError" in down.stderr
    assert "12345" not in down.stderr
    number = guard(booking, *recover, "gateway:number", **environment)
    assert (number.returncode, number.stderr) == (0, "")
    assert rows(booking, "select calcom_v2_booking_id from appointments") == [("5",)]


def test_a_call_whose_bookings_are_all_refused(booking: str, calendar: Calendar) -> None:
    """One item names each of them."""
    guard = BookingGuard(booking, Calls())
    for key in ("k1", "k2", "k3"):
        assert guard.book(1, REFUSED, remote(calendar), key=key).state == "queued"
    assert rows(booking, "select count(*) from guard.manual_review_queue") == [(1,)]
    assert len(calendar.bookings) == 3
    assert_nothing_is_lost(booking, calendar)


@pytest.mark.slow
def test_killed_at_every_step(booking: str, calendar: Calendar) -> None:
    def run(call_id: int, step: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.booking_process",
                booking,
                calendar.url,
                str(call_id),
                f"k{call_id}",
                str(step),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    whole = run(60, -1)
    state, count = whole.stdout.split()
    assert state == "booked"
    steps = int(count)
    assert steps >= 10
    for step in range(steps):
        died = run(step + 1, step)
        assert died.returncode == -signal.SIGKILL, died.stderr
    guard = BookingGuard(booking, Calls())
    guard.recover(older_than_seconds=0, ask=calendar.bookings.get)
    assert_nothing_is_lost(booking, calendar)
    # what the calendar booked was recorded, not just queued: it was asked
    assert len(rows(booking, "select from appointments")) == len(calendar.bookings)


@pytest.mark.slow
def test_killed_at_every_step_and_nobody_to_ask(booking: str, calendar: Calendar) -> None:
    for step in range(0, 16, 2):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.booking_process",
                booking,
                calendar.url,
                str(step + 1),
                f"k{step}",
                str(step),
            ],
            check=False,
            capture_output=True,
            timeout=60,
        )
    BookingGuard(booking, Calls()).recover(older_than_seconds=0)
    assert (
        rows(booking, "select key from guard.booking_intents where state in ('started', 'remote_booked', 'recorded')")
        == []
    )
    unknown = "select count(*) from guard.manual_review_queue where context ? 'question'"
    known = {uid for (uid,) in rows(booking, "select calcom_v2_booking_id from appointments")}
    assert rows(booking, unknown)[0][0] >= len(set(calendar.bookings.values()) - known)
