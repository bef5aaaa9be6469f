"""Signatures of webhooks: over the raw body, in constant time, within the replay window; and webhooks at once."""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from guard.errors import SignatureError
from guard.webhooks import verify_calcom, verify_retell
from tests.sessions import OPTIONS, two_sessions

BODY = b'{"event": "call_ended"}'
SECRET = "s3cret"  # noqa: S105  # a test's
NOW = 1_767_225_600.0


def retell(body: bytes = BODY, secret: str = SECRET, at: float = NOW) -> str:
    milliseconds = str(int(at * 1000))
    digest = hmac.new(secret.encode(), body + milliseconds.encode(), sha256).hexdigest()
    return f"v={milliseconds},d={digest}"


def calcom(body: bytes = BODY, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, sha256).hexdigest()


def test_a_good_signature_passes() -> None:
    verify_retell(BODY, retell(), SECRET, now=NOW)
    verify_retell(BODY, retell(at=NOW - 299), SECRET, now=NOW)
    verify_retell(BODY, retell(at=NOW - 599), SECRET, replay_window=600, now=NOW)
    verify_calcom(BODY, calcom(), SECRET)


def test_the_replay_window_can_be_narrower() -> None:
    with pytest.raises(SignatureError, match="more than 60 s from now"):
        verify_retell(BODY, retell(at=NOW - 61), SECRET, replay_window=60, now=NOW)


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "v=1,d=2",
        retell(b"{}"),
        retell(secret="other"),  # noqa: S106  # a test's
        retell(at=NOW - 301),
        retell(at=NOW + 301),
        retell().replace("v=", "v=0"),
        retell() + "\n",
    ],
)
def test_a_bad_signature_of_the_phone_agent_is_refused(signature: str | None) -> None:
    with pytest.raises(SignatureError):
        verify_retell(BODY, signature, SECRET, now=NOW)


@pytest.mark.parametrize(
    "signature",
    [None, "", "no-secret-provided", "é" * 64, calcom(b"{}"), calcom(secret="other")],  # noqa: S106  # a test's
)
def test_a_bad_signature_of_the_calendar_is_refused(signature: str | None) -> None:
    with pytest.raises(SignatureError):
        verify_calcom(BODY, signature, SECRET)


def test_no_secret_is_refused() -> None:
    with pytest.raises(SignatureError):
        verify_retell(BODY, retell(secret=""), "", now=NOW)
    with pytest.raises(SignatureError):
        verify_calcom(BODY, calcom(secret=""), "")


BOOKINGS = 60


@pytest.fixture
def booked(database: str) -> str:
    """A database in which each of some calls has booked in the calendar, and nothing is recorded yet."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("insert into companies (id, name) values (1, 'A')")
        connection.execute(
            "insert into calls (id, company_id, direction, retell_call_id)"
            " select g, 1, 'inbound', 'call_' || g from generate_series(1, %s) g",
            (BOOKINGS,),
        )
        connection.execute("select guard.begin_booking('k' || id, id, '{}') from calls")
        connection.execute("select guard.mark_remote_booked('k' || id, id || '_1') from calls")
    return database


def event(trigger: str, booking: int, uid: int, **more: Any) -> Jsonb:
    payload = {"uid": f"{booking}_{uid}", "startTime": f"2030-01-0{uid}T09:00:00Z", **more}
    return Jsonb({"triggerEvent": trigger, "createdAt": f"2026-01-0{uid}T09:00:00Z", "payload": payload})


def moved(booking: int, uid: int) -> Jsonb:
    return event("BOOKING_RESCHEDULED", booking, uid, rescheduleUid=f"{booking}_{uid - 1}")


def test_a_booking_process_and_a_webhook_lock_in_one_order(booked: str) -> None:
    cancelled = json.dumps(event("BOOKING_CANCELLED", 1, 1).obj)
    with two_sessions(booked) as (webhook, process):
        webhook.begin()
        assert webhook.run("select guard.lock_bookings('{1_1}')") == "done"  # as each event does first
        process.start("select guard.record_booking('k1', '{}')")
        assert process.is_blocked()
        assert webhook.run(f"select guard.handle_booking_event('{cancelled}')") == "done"
        assert webhook.run("commit") == "done"
        assert process.finish() == "done"
    with psycopg.connect(booked) as connection:
        assert connection.execute(
            "select i.state, a.status from guard.booking_intents i inner join appointments a on i.appointment_id = a.id"
        ).fetchall() == [("compensated", "cancelled")]


def test_all_at_once_ends_as_one_after_the_other(booked: str) -> None:
    """Every step of a booking's story in a session of its own, at once, with recovery and the hourly job beside."""
    handle = "select guard.handle_booking_event(%s)"
    died = (
        "update guard.booking_intents set updated_at = now() - interval '1 hour' where key = %s and state <> 'recorded'"
    )
    steps: list[Callable[[int], list[tuple[str, tuple[Any, ...]]]]] = [
        lambda n: [(handle, (event("BOOKING_CREATED", n, 1),))],
        lambda n: [(handle, (moved(n, 2),))],
        lambda n: [(handle, (moved(n, 3),))],
        lambda n: [(handle, (event("BOOKING_CANCELLED" if n % 2 else "BOOKING_CREATED", n, 3),))],
        lambda n: [("select guard.record_booking(%s, '{}')", (f"k{n}",))],
        lambda n: [(died, (f"k{n}",)), ("select guard.recover_intents()", ())],
        lambda n: [("select guard.process_review_queue()", ())],
    ]
    gate = threading.Barrier(len(steps), timeout=60)
    failures: list[psycopg.Error] = []

    def play(step: Callable[[int], list[tuple[str, tuple[Any, ...]]]]) -> None:
        with psycopg.connect(booked, autocommit=True, options=OPTIONS) as connection:
            for booking in range(1, BOOKINGS + 1):
                try:
                    gate.wait()
                    for statement, values in step(booking):
                        connection.execute(statement.encode(), values)
                except psycopg.Error as error:
                    failures.append(error)
                    gate.abort()
                except threading.BrokenBarrierError:
                    return

    with ThreadPoolExecutor(len(steps)) as pool:
        list(pool.map(play, steps))
    assert failures == []
    with psycopg.connect(booked, autocommit=True) as connection:
        connection.execute("select guard.recover_intents('0 seconds')")
        ended = connection.execute(
            """
            select c.id, a.calcom_v2_booking_id, a.status, a.starts_at::date::text, i.state, i.appointment_id = a.id
            from calls as c
            inner join guard.booking_intents as i on i.call_id = c.id
            left join appointments as a on a.call_id = c.id and a.status <> 'rescheduled'
            order by 1
            """
        ).fetchall()
        asked = connection.execute("select reason, context from guard.manual_review_queue where status <> 'resolved'")
        assert asked.fetchall() == []
    outcomes = {1: ("cancelled", "compensated"), 0: ("booked", "validated")}
    assert ended == [
        (n, f"{n}_3", outcomes[n % 2][0], "2030-01-03", outcomes[n % 2][1], True) for n in range(1, BOOKINGS + 1)
    ]
