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
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import psycopg
from psycopg.types.json import Jsonb

from guard import database, deadline
from guard.database import Connection
from guard.errors import CircuitOpenError
from guard.retrying import http_status, retry

T = TypeVar("T")

_log = logging.getLogger(__name__)

Request = dict[str, Any]
#: Books in the calendar: gets the request and the idempotency key, which the calendar has to keep, since that is what
#: it is asked about later; returns the calendar's id of the booking.
Remote = Callable[[Request, str], str | int]
#: Asks the calendar what became of an idempotency key: the booking's id, or None if it did not book.
Ask = Callable[[str], str | int | None]
#: Writes down what the calendar said of a key: the id of a booking, or why there is none.
Step = Callable[[Connection, str, str], None]


class Breaker(Protocol):
    """What is asked of a circuit breaker: call, or raise CircuitOpenError or OperationTimeoutError."""

    def call(self, operation: Callable[..., T], /, *args: Any) -> T: ...


@dataclass(frozen=True)
class Booking:
    """What became of a request.

    booked: there is an appointment, validated. cancelled: there was a booking, and the calendar has cancelled it.
    failed: the calendar refused or was not reached (`reason` is the class of the error), or says that it did not book
    (`not_booked`); a person is asked. queued: the calendar was not called (`circuit_open`), or nobody knows what it did
    (`outcome_unknown`), or what it booked could not be recorded (`reason` is a failed check or an SQLSTATE); a person
    is asked, or recovery asks the calendar. pending: another process is at work on this key, or died at it, or the
    database is away (`not_recorded`); recovery does the rest.

    `retry_after`, in seconds, is told only by the call that met the open circuit.
    """

    state: Literal["booked", "cancelled", "failed", "queued", "pending"]
    key: str
    booking_id: str | None = None
    appointment_id: int | None = None
    reason: str | None = None
    retry_after: float | None = None


class BookingGuard:
    """Books through a circuit breaker, with a write-ahead intent. Thread-safe; no connection waits for the calendar.

    `dsn` is a libpq connection string, with the rights of guard_app.
    """

    def __init__(self, dsn: str, breaker: Breaker) -> None:
        self._dsn = dsn
        self._breaker = breaker

    def book(self, call_id: int, request: Request, remote: Remote, *, key: str | None = None) -> Booking:
        """Book `request` for a call. The remote call is made at most once for one key, however often this is called.

        What the calendar says after the breaker's timeout is not lost: it is remembered, and recovery records it.

        `request` holds the appointment's columns, as JSON: starts_at, ends_at, staff_id, service_id, customer_id.
        Raises only where the calendar did not book: psycopg errors with SQLSTATE ZG301 (no such call), ZG310 (the key
        stands for another request), ZG313 (bad input), psycopg.OperationalError where the database is away.
        """
        key = key or uuid.uuid4().hex
        earlier = self._begin(key, call_id, request)
        if earlier is not None:
            return earlier
        try:
            booking_id = self._breaker.call(self._book_remotely, key, request, remote)
        except CircuitOpenError as error:
            return replace(self._write(_give_up, key, "circuit_open"), retry_after=error.retry_after)
        except Exception as error:
            if _did_not_book(error):
                return self._write(_give_up, key, type(error).__name__)
            _log.warning("nobody knows whether the calendar booked %s: %s", key, type(error).__name__)
            return Booking("queued", key, reason="outcome_unknown")  # the intent stays open: recovery asks
        return self._keep(_record, key, booking_id)

    def recover(self, *, older_than_seconds: float = 60, ask: Ask | None = None) -> list[tuple[str, str, str]]:
        """Clear up what died while it booked; as the function `recover`."""
        with self._connection() as connection:
            return recover(connection, older_than_seconds, ask)

    def _begin(self, key: str, call_id: int, request: Request) -> Booking | None:
        """Open the intent, committed. None if it is new, else what became of it."""
        with self._connection() as connection:
            row = connection.execute(
                "select is_new from guard.begin_booking(%s, %s, %s)", (key, call_id, Jsonb(request))
            ).fetchone()
            return None if row == (True,) else _result(connection, key)

    def _book_remotely(self, key: str, request: Request, remote: Remote) -> str:
        """Book; where the caller has stopped waiting, or is about to, remember it here, in the thread that is left."""
        booking_id = _id(remote(request, key))
        left = deadline.remaining_time()
        if left is not None and left < 1:
            Context().run(self._keep, _mark, key, booking_id)  # without the deadline, which is the calendar's
        return booking_id

    def _keep(self, step: Step, key: str, booking_id: str) -> Booking:
        """Write down what the calendar booked; if the database is away, the log and the caller have the id."""
        try:
            return self._write(step, key, booking_id)
        except Exception as error:
            _log.error("the calendar booked %s as %s, which is not recorded: %s", key, booking_id, type(error).__name__)
            return Booking("pending", key, booking_id, reason="not_recorded")

    @retry(attempts=5, base_delay=0.2)
    def _write(self, step: Step, key: str, said: str) -> Booking:
        """Write down what the calendar said. Steps can be repeated: so a connection that breaks stops nothing."""
        with self._connection() as connection:
            step(connection, key, said)
            return _result(connection, key)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = database.connect(self._dsn)
        try:
            yield connection
        finally:
            connection.close()


def recover(connection: Connection, older_than_seconds: float, ask: Ask | None = None) -> list[tuple[str, str, str]]:
    """Clear up the intents that have not moved for so long: (key, state, action) of each; known bookings come first.

    Of those whose outcome nobody knows `ask` is asked; without it they go to a person. One about which it cannot be
    asked stays as it is, for the next time: `ask_failed`. The other actions are those of guard.recover_intent.
    """
    unfinished = connection.execute(
        """
        select i.key, i.state
        from guard.booking_intents as i
        where
            i.state::text = any('{started,remote_booked,recorded}')
            and i.updated_at <= now() - make_interval(secs => %s)
        order by i.state = 'started', i.id
        """,
        (older_than_seconds,),
    ).fetchall()
    return [(key, *_recover(connection, key, ask if state == "started" else None)) for key, state in unfinished]


def _recover(connection: Connection, key: str, ask: Ask | None) -> tuple[str, str]:
    cause = "outcome_unknown"
    if ask is not None:
        try:
            answer = ask(key)
            booking_id = None if answer is None else _id(answer)
        except Exception as error:
            _log.warning("the calendar could not be asked about %s: %s", key, type(error).__name__)
            return "started", "ask_failed"
        if booking_id is None:
            cause = "not_booked"
        else:
            _mark(connection, key, booking_id)
    row = connection.execute("select state, action from guard.recover_intent(%s, %s)", (key, cause)).fetchone()
    assert row is not None  # noqa: S101  # the function returns one row
    return row[0], row[1]


def _mark(connection: Connection, key: str, booking_id: str) -> None:
    """Remember what the calendar booked. A second booking for one key goes to a person."""
    try:
        connection.execute("select guard.mark_remote_booked(%s, %s)", (key, booking_id))
    except psycopg.Error as error:
        if error.sqlstate != "ZG311":
            raise
        _ask_about_second_booking(connection, key, booking_id)


def _ask_about_second_booking(connection: Connection, key: str, booking_id: str) -> None:
    context = {
        "subject": booking_id,
        "booking_id": booking_id,
        "key": key,
        "cause": "second_booking",
        "question": "the calendar booked twice: cancel one there",
    }
    queue = (
        "select guard.queue_review(case when %s then i.call_id end, 'appointment_validation_failed', %s)"
        " from guard.booking_intents as i where i.key = %s"
    )
    try:
        connection.execute(queue, (True, Jsonb(context), key))
    except psycopg.Error as error:
        if error.sqlstate != "ZG301":
            raise
        connection.execute(queue, (False, Jsonb(context), key))  # the call is gone


def _record(connection: Connection, key: str, booking_id: str) -> None:
    """Write and validate the appointment in one transaction; if that cannot be, take it back and ask a person."""
    _mark(connection, key, booking_id)
    wrong: str | None = None
    try:
        with connection.transaction():
            row = connection.execute("select state from guard.record_booking(%s, '{}')", (key,)).fetchone()
            if row != ("compensated",):
                valid = connection.execute("select success, reason from guard.validate_booking(%s)", (key,)).fetchone()
                if valid is not None and not valid[0]:
                    wrong = valid[1]
                    raise psycopg.Rollback
    except psycopg.OperationalError:
        raise  # a lock, a deadlock, a connection: that says nothing about the booking
    except psycopg.Error as error:
        wrong = str(error.sqlstate)
    if wrong is not None:
        _fail(connection, key, "appointment_validation_failed", wrong)


def _give_up(connection: Connection, key: str, cause: str) -> None:
    """The calendar did not book."""
    _fail(connection, key, "calcom_booking_failed", cause)


def _fail(connection: Connection, key: str, reason: str, cause: str) -> None:
    connection.execute("select guard.fail_booking(%s, %s, %s)", (key, reason, cause))


def _result(connection: Connection, key: str) -> Booking:
    """What became of a booking, as its intent says: so whoever repeats a request gets the first result."""
    row = connection.execute(
        "select state, booking_id, appointment_id, failure_reason from guard.booking_intents where key = %s", (key,)
    ).fetchone()
    assert row is not None  # noqa: S101  # an intent is never deleted
    state, booking_id, appointment_id, cause = row
    match state:
        case "validated":
            return Booking("booked", key, booking_id, appointment_id)
        case "compensated":
            return Booking("cancelled", key, booking_id, appointment_id)
        case "failed" if booking_id is None and cause not in ("circuit_open", "outcome_unknown"):
            return Booking("failed", key, reason=cause)
        case "failed":
            return Booking("queued", key, booking_id, reason=cause)
        case _:
            return Booking("pending", key, booking_id, appointment_id)


def _id(answer: object) -> str:
    """The calendar's id of a booking, as text. Raises ValueError if it is none."""
    booking_id = str(answer) if isinstance(answer, str | int | uuid.UUID) else ""
    if not 1 <= len(booking_id) <= 200 or "\0" in booking_id:
        raise ValueError(f"a booking's id has 1 to 200 characters, and this is of type {type(answer).__name__}")
    return booking_id


def _did_not_book(error: BaseException) -> bool:
    """Whether it is certain that the calendar did not book: it refused, or was not even reached."""
    status = http_status(error)
    if status is not None:
        return (400 <= status < 500 and status != 408) or status == 503  # 408: it may have booked, too late
    return isinstance(getattr(error, "reason", error), ConnectionRefusedError | socket.gaierror)
