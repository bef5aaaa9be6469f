"""The booking path when the calendar fails, hangs and dies, and when a booking process is killed.

`run` shows it on an empty database. As a program it is a gateway that books once: python -m examples.booking DSN CALL
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import psycopg
from rich.logging import RichHandler

from examples import calendar_stub
from examples.calendar_stub import Calendar
from examples.stage import console, expect, fail, guard, guard_json, show, title, write
from guard import BookingGuard, CircuitBreaker, FallbackStore, PostgresStore, Settings
from guard.booking import Booking

COLOURS = {"booked": "green", "failed": "red", "queued": "yellow", "pending": "yellow"}


class Gateway:
    """An application that books for phone calls."""

    def __init__(self, dsn: str, store: FallbackStore) -> None:
        settings = Settings.load(dsn)
        self.key = settings.breaker_key(service_id=7)
        self.breaker = CircuitBreaker(self.key, store=store, **settings.breaker())
        self._guard = BookingGuard(dsn, self.breaker)

    def book(self, call: int, attempt: int = 1) -> Booking:
        key = f"call-{call}-{attempt}"
        request = {"staff_id": 1, "starts_at": f"2030-01-{call:02}T09:00Z", "ends_at": f"2030-01-{call:02}T09:30Z"}
        return self._guard.book(call, request, calendar_stub.book, key=key)


def run(dsn: str) -> None:
    """The demo, on an empty database."""
    os.environ["GUARD_DSN"] = dsn
    plain = RichHandler(console=console, show_time=False, show_path=False)
    logging.basicConfig(format="%(message)s", handlers=[plain])
    with calendar_stub.running() as calendar, psycopg.connect(dsn, autocommit=True) as connection:
        os.environ["CALENDAR_URL"] = calendar.url

        title("A booking gateway on an empty database, and a calendar over HTTP")
        expect(len(guard_json("apply")["done"]) > 0, "guard made the tables, and keeps them true")
        write(connection, "insert into companies (id, name) values (1, 'A')")
        write(connection, "insert into staff (id, company_id, name) values (1, 1, 'Ann')")
        write(connection, "insert into calls (id, company_id) select id, 1 from generate_series(1, 9) as id")
        guard("settings", "set", "cooldown_seconds", "2")
        guard("settings", "set", "timeout_seconds", "1")
        with closing(FallbackStore(PostgresStore(dsn))) as store:
            gateway = Gateway(dsn, store)
            _fails_and_recovers(gateway, calendar)
            _dies(gateway, calendar, connection, dsn)
            _is_worked_off(gateway, calendar, connection)


def _fails_and_recovers(gateway: Gateway, calendar: Calendar) -> None:
    title("The calendar books, fails, fails again, and hangs: the circuit opens")
    calendar.schedule.extend(["ok", "fail", "fail", "hang"])
    _book(gateway, 1, "booked")
    _book(gateway, 2, "failed", "HTTPError")
    _book(gateway, 3, "failed", "HTTPError")
    _book(gateway, 4, "queued", "outcome_unknown")
    expect(gateway.breaker.snapshot().state == "open", "three failures in a row opened the circuit")

    title("While it is open, bookings are queued at once, and the calendar is left alone")
    asked = len(calendar.asked)
    begun = time.monotonic()
    booking = _book(gateway, 5, "queued", "circuit_open")
    expect(time.monotonic() - begun < 1, "the caller did not wait for the timeout")
    expect(len(calendar.asked) == asked, "the calendar was not called")
    guard("breaker", "list")

    title("The calendar is back: two probes succeed, and the circuit closes")
    time.sleep(booking.retry_after or 0)
    _book(gateway, 6, "booked")
    _book(gateway, 7, "booked")
    expect(gateway.breaker.snapshot().state == "closed", "the circuit has closed by itself")
    guard("breaker", "events", gateway.key)


def _dies(gateway: Gateway, calendar: Calendar, connection: psycopg.Connection[Any], dsn: str) -> None:
    title("The calendar dies before it answers; a booking process, while it waits")
    calendar.schedule.extend(["die", "late"])
    _book(gateway, 8, "queued", "outcome_unknown")
    worker = subprocess.Popen([sys.executable, "-m", "examples.booking", dsn, "9"])
    try:
        until = time.monotonic() + 30
        while "call-9-1" not in calendar.bookings:
            if time.monotonic() > until or worker.poll() is not None:
                fail("the booking process did not come as far as the calendar")
            time.sleep(0.01)
    finally:
        worker.kill()
        status = worker.wait()
    console.print(f"call 9: [red]its process was killed with kill -9[/red] (exit status {status})")
    expect(status == -signal.SIGKILL, "it did not end by itself")
    expect({"call-8-1", "call-9-1"} <= calendar.bookings.keys(), "the calendar holds both bookings")
    show(connection, "select count(*) from appointments where call_id in (8, 9)", [(0,)])

    title("The intents were written ahead: recovery asks the calendar what it did")
    guard("intents", "list")
    guard("intents", "recover", "--older-than", "0", "--ask", "examples.calendar_stub:find")
    show(
        connection,
        """
        select c.id, c.session_outcome, a.calcom_v2_booking_id
        from calls as c left join appointments as a on a.call_id = c.id where c.id in (4, 8, 9) order by c.id
        """,
        [
            (4, "creation_failed", None),
            (8, "appointment_booked", calendar.bookings["call-8-1"]),
            (9, "appointment_booked", calendar.bookings["call-9-1"]),
        ],
    )


def _is_worked_off(gateway: Gateway, calendar: Calendar, connection: psycopg.Connection[Any]) -> None:
    title("What could not be booked waits for a person")
    guard("review", "list")
    queued = "select call_id, reason from guard.manual_review_queue where status <> 'resolved' order by call_id"
    show(connection, queued, [(call, "calcom_booking_failed") for call in (2, 3, 4, 5)])
    guard("review", "take", "--as", "ann")
    for call in (2, 3, 4, 5):
        _book(gateway, call, "booked", attempt=2)
    guard("review", "resolve", "1", "called back, booked again")
    solved = "select distinct resolution from guard.manual_review_queue where call_id in (3, 4, 5)"
    show(connection, solved, [("the call has its appointment now",)])
    guard("review", "list")

    title("Nothing was lost and nothing was invented")
    recorded = connection.execute("select calcom_v2_booking_id from appointments").fetchall()
    expect(
        sorted(uid for (uid,) in recorded) == sorted(calendar.bookings.values()),
        f"each of the calendar's {len(recorded)} bookings has one appointment, and there is no other",
    )
    guard("audit")
    counts = " union all ".join(
        f"select count(*) from guard.{rule}" for (rule,) in connection.execute("select rule from guard.rules")
    )
    expect(set(connection.execute(counts.encode()).fetchall()) == {(0,)}, "the audit counts zero for every rule")


def _book(gateway: Gateway, call: int, state: str, reason: str | None = None, attempt: int = 1) -> Booking:
    """Book for a call, say what became of it, and end the demo if it is something else than expected."""
    begun = time.monotonic()
    booking = gateway.book(call, attempt)
    taken = time.monotonic() - begun
    why = f", {booking.reason}" if booking.reason else ""
    console.print(f"call {call}: [{COLOURS[booking.state]}]{booking.state}[/]{why} after {taken:.2f} s")
    if (booking.state, booking.reason) != (state, reason):
        fail(f"expected {state}, {reason}")
    return booking


if __name__ == "__main__":
    with closing(FallbackStore(PostgresStore(sys.argv[1]))) as its_store:
        Gateway(sys.argv[1], its_store).book(int(sys.argv[2]))
