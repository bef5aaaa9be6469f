"""Book without losing or inventing a booking: intent, remote call, record, validation, in this order.

The SQL behind it (`sql/functions/booking_intents.sql`) serves applications in any language; this is the same for
Python, with the circuit breaker around the calendar.
"""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import psycopg
from psycopg.types.json import Jsonb

from guard import database, deadline
from guard.database import Connection
from guard.errors import CircuitOpenError, OperationTimeoutError
from guard.retrying import http_status

T = TypeVar("T")

_log = logging.getLogger(__name__)

Request = dict[str, Any]
#: Books in the calendar: gets the request, returns the calendar's id of the booking.
Remote = Callable[[Request], str]
#: Asks the calendar what became of an idempotency key: the booking's id, or None if it did not book.
Ask = Callable[[str], str | None]


class Breaker(Protocol):
    """What is asked of a circuit breaker: call, or raise CircuitOpenError or OperationTimeoutError."""

    def call(self, operation: Callable[..., T], /, *args: Any) -> T: ...


@dataclass(frozen=True)
class Booking:
    """What became of a request.

    booked: there is an appointment, validated. failed: the calendar refused or was not reached; a person is asked.
    queued: the calendar was not called (`circuit_open`), or nobody knows what it did (`outcome_unknown`), or what it
    booked could not be recorded; a person is asked, or recovery asks the calendar. pending: another process is at work
    on this key, or died at it.
    """

    state: Literal["booked", "failed", "queued", "pending"]
    key: str
    booking_id: str | None = None
    appointment_id: int | None = None
    reason: str | None = None
    retry_after: float | None = None


class InvalidBookingError(Exception):
    """The appointment was written, and is not what it should be: take it back."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class BookingGuard:
    """Books through a circuit breaker, with a write-ahead intent. Thread-safe: each booking has its own connection.

    `dsn` is a libpq connection string, with the rights of guard_app.
    """

    def __init__(self, dsn: str, breaker: Breaker) -> None:
        self._dsn = dsn
        self._breaker = breaker

    def book(self, call_id: int, request: Request, remote: Remote, *, key: str | None = None) -> Booking:
        """Book `request` for a call. The remote call is made at most once for one key, however often this is called.

        What the calendar says after the breaker's timeout is not lost: it is remembered, and recovery records it.

        `request` holds the appointment's columns, as JSON: starts_at, ends_at, staff_id, service_id, customer_id.
        Raises psycopg errors with SQLSTATE ZG301 (no such call), ZG310 (the key stands for another request), ZG313.
        """
        key = key or uuid.uuid4().hex
        with self._connection() as connection:
            earlier = self._begin(connection, key, call_id, request)
            if earlier is not None:
                return earlier
            try:
                booking_id = self._breaker.call(self._book_remotely, key, request, remote)
            except CircuitOpenError as error:
                _fail(connection, key, "calcom_booking_failed")
                return Booking("queued", key, reason="circuit_open", retry_after=error.retry_after)
            except OperationTimeoutError:
                return Booking("queued", key, reason="outcome_unknown")  # the intent stays open: recovery asks
            except Exception as error:
                if not _did_not_book(error):
                    _log.warning("nobody knows whether the calendar booked %s: %r", key, error)
                    return Booking("queued", key, reason="outcome_unknown")
                _fail(connection, key, "calcom_booking_failed")
                return Booking("failed", key, reason=type(error).__name__)
            _mark(connection, key, booking_id)
            return self._record(connection, key, booking_id)

    def recover(self, *, older_than_seconds: float = 60, ask: Ask | None = None) -> list[tuple[str, str, str]]:
        """Clear up what died while it booked; as the function `recover`."""
        with self._connection() as connection:
            return recover(connection, older_than_seconds, ask)

    def _book_remotely(self, key: str, request: Request, remote: Remote) -> str:
        """Book; where the caller has stopped waiting, remember the booking here, in the thread that is left."""
        booking_id = remote(request)
        if deadline.remaining_time() == 0:
            with self._connection() as connection:
                _mark(connection, key, booking_id)
        return booking_id

    def _begin(self, connection: Connection, key: str, call_id: int, request: Request) -> Booking | None:
        """Open the intent, committed. None if it is new, else what became of it."""
        row = connection.execute(
            "select state, is_new, booking_id, appointment_id from guard.begin_booking(%s, %s, %s)",
            (key, call_id, Jsonb(request)),
        ).fetchone()
        assert row is not None  # noqa: S101  # the function returns one row
        state, is_new, booking_id, appointment_id = row
        if is_new:
            return None
        if state == "validated":
            return Booking("booked", key, booking_id, appointment_id)
        if state in ("failed", "compensated"):
            return Booking("failed", key, booking_id, appointment_id, reason=state)
        return Booking("pending", key, booking_id, appointment_id)

    def _record(self, connection: Connection, key: str, booking_id: str) -> Booking:
        """Write and validate the appointment in one transaction; if that cannot be, take it back and ask a person."""
        try:
            with connection.transaction():
                row = connection.execute("select appointment_id from guard.record_booking(%s, '{}')", (key,)).fetchone()
                valid = connection.execute("select success, reason from guard.validate_booking(%s)", (key,)).fetchone()
                assert row is not None  # noqa: S101  # both functions return one row
                assert valid is not None  # noqa: S101
                if not valid[0]:
                    raise InvalidBookingError(valid[1])
        except psycopg.OperationalError:
            raise  # the database is gone: the intent says how far it came, recovery does the rest
        except (InvalidBookingError, psycopg.Error) as error:
            _fail(connection, key, "appointment_validation_failed")
            reason = error.reason if isinstance(error, InvalidBookingError) else str(error.sqlstate)
            return Booking("queued", key, booking_id, reason=reason)
        return Booking("booked", key, booking_id, row[0])

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = database.connect(self._dsn)
        try:
            yield connection
        finally:
            connection.close()


def recover(connection: Connection, older_than_seconds: float, ask: Ask | None = None) -> list[tuple[str, str, str]]:
    """Clear up the intents that have not moved for so long: (key, state, action) of each.

    Of those whose outcome nobody knows `ask` is asked; without it they go to a person. What `ask` raises is raised.
    """
    done: dict[str, tuple[str, str]] = {}
    if ask is not None:
        for (key,) in connection.execute(
            "select i.key from guard.booking_intents as i"
            " where i.state = 'started' and i.updated_at <= now() - make_interval(secs => %s) order by i.id",
            (older_than_seconds,),
        ).fetchall():
            done[key] = _settle(connection, key, ask(key))
    for key, state, action in connection.execute(
        "select key, state, action from guard.recover_intents(make_interval(secs => %s))", (older_than_seconds,)
    ).fetchall():
        done[key] = (state, done[key][1] if key in done else action)
    return [(key, state, action) for key, (state, action) in done.items()]


def _settle(connection: Connection, key: str, booking_id: str | None) -> tuple[str, str]:
    """State and action of an intent after the calendar has said what became of it."""
    if booking_id is not None:
        _mark(connection, key, booking_id)
        try:
            connection.execute("select guard.record_booking(%s, '{}')", (key,))
        except psycopg.OperationalError:
            raise
        except psycopg.Error:  # the record is refused, for an overlap say
            _fail(connection, key, "appointment_validation_failed")
        else:
            return "recorded", "recorded"
    else:
        _fail(connection, key, "calcom_booking_failed")
    return "failed", "queued"


def _mark(connection: Connection, key: str, booking_id: str) -> None:
    connection.execute("select guard.mark_remote_booked(%s, %s)", (key, booking_id))


def _fail(connection: Connection, key: str, reason: str) -> None:
    connection.execute("select guard.fail_booking(%s, %s)", (key, reason))


def _did_not_book(error: BaseException) -> bool:
    """Whether it is certain that the calendar did not book: it refused, or was not even reached."""
    status = http_status(error)
    if status is not None:
        return 400 <= status < 500 or status == 503
    return isinstance(getattr(error, "reason", error), ConnectionRefusedError | socket.gaierror)
