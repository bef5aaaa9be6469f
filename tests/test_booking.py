"""No failure, timeout or crash between the calendar and the database loses a booking or invents one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
import pytest

from guard.booking import BookingGuard, Request
from guard.errors import CircuitOpenError, OperationTimeoutError
from tests.calendar_stub import Calendar

T = TypeVar("T")


class Calls:
    """No circuit breaker: calls."""

    def call(self, operation: Callable[..., T], /, *args: Any) -> T:
        return operation(*args)


@pytest.fixture
def calendar() -> Iterator[Calendar]:
    server = Calendar()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


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


def remote(calendar: Calendar, key: str) -> Callable[[Request], str]:
    def book(request: Request) -> str:
        body = json.dumps({"key": key, "request": request}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{calendar.url}/bookings", body), timeout=5) as answer:
            return str(json.load(answer)["uid"])

    return book


def request(call_id: int) -> Request:
    return {"staff_id": 1, "starts_at": f"2030-01-{call_id % 28 + 1:02}T09:00:00Z", "ends_at": None}


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def assert_nothing_is_lost(dsn: str, calendar: Calendar) -> None:
    """Every remote booking has an appointment or a review item, none has two, and no call claims what is not."""
    recorded = [uid for (uid,) in rows(dsn, "select calcom_v2_booking_id from appointments")]
    asked = {uid for (uid,) in rows(dsn, "select context ->> 'booking_id' from guard.manual_review_queue")}
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
    result = BookingGuard(booking, Calls()).book(1, request(1), remote(calendar, "k1"), key="k1")
    assert (result.state, result.booking_id) == ("booked", "uid_1")
    assert rows(booking, "select appointment_made, session_outcome from calls where id = 1") == [
        (True, "appointment_booked")
    ]
    assert_nothing_is_lost(booking, calendar)


def test_the_same_key_books_once(booking: str, calendar: Calendar) -> None:
    guard = BookingGuard(booking, Calls())
    first = guard.book(1, request(1), remote(calendar, "k1"), key="k1")

    def never(_: Request) -> str:
        raise AssertionError("the calendar was called again")

    assert guard.book(1, request(1), never, key="k1") == first
    with pytest.raises(psycopg.Error) as error:
        guard.book(1, request(2), never, key="k1")
    assert error.value.sqlstate == "ZG310"


def test_many_threads_one_key(booking: str, calendar: Calendar) -> None:
    states: list[str] = []
    guard = BookingGuard(booking, Calls())
    threads = [
        threading.Thread(
            target=lambda: states.append(guard.book(1, request(1), remote(calendar, "k1"), key="k1").state)
        )
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
    result = BookingGuard(booking, Calls()).book(1, request(1), remote(calendar, "k1"), key="k1")
    assert result.state == "failed"
    assert rows(booking, "select reason, priority from guard.manual_review_queue") == [("calcom_booking_failed", 2)]
    assert rows(booking, "select kind from guard.notifications") == [("booking_rolled_back",)]
    assert_nothing_is_lost(booking, calendar)


def test_an_open_circuit_queues(booking: str, calendar: Calendar) -> None:
    class Open:
        def call(self, _operation: Callable[..., T], /, *_: Any) -> T:
            raise CircuitOpenError("calendar", "open", 12.5)

    result = BookingGuard(booking, Open()).book(1, request(1), remote(calendar, "k1"), key="k1")
    assert (result.state, result.reason, result.retry_after) == ("queued", "circuit_open", 12.5)
    assert calendar.bookings == {}
    assert_nothing_is_lost(booking, calendar)


def test_a_timeout_is_cleared_up_by_asking(booking: str, calendar: Calendar) -> None:
    class Late:
        """Times out, although the calendar has booked."""

        def call(self, operation: Callable[..., T], /, *args: Any) -> T:
            operation(*args)
            raise OperationTimeoutError

    guard = BookingGuard(booking, Late())
    assert guard.book(1, request(1), remote(calendar, "k1"), key="k1").state == "queued"
    assert guard.book(2, request(2), lambda _: "never", key="k2").state == "queued"
    assert sorted(guard.recover(older_than_seconds=0, ask=calendar.bookings.get)) == [("k1", "validated", "recorded")]
    assert rows(booking, "select key, state from guard.booking_intents order by key") == [
        ("k1", "validated"),
        ("k2", "failed"),
    ]
    assert_nothing_is_lost(booking, calendar)


def test_a_refused_record_goes_to_a_person(booking: str, calendar: Calendar) -> None:
    taken = {"staff_id": 1, "starts_at": "2030-01-01T09:00:00Z", "ends_at": "2030-01-01T10:00:00Z"}
    guard = BookingGuard(booking, Calls())
    assert guard.book(1, taken, remote(calendar, "k1"), key="k1").state == "booked"
    result = guard.book(2, taken, remote(calendar, "k2"), key="k2")
    assert (result.state, result.booking_id, result.reason) == ("queued", "uid_2", "23P01")
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
