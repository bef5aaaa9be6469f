"""The application that plays the stream: the same in every mode, but where guard is, guard handles the webhooks."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from guard.database import Connection
from guard.simulation.stream import COMPANIES, FAULTS, Call

_BROKEN = {rule for broken in FAULTS.values() for rule in broken}

_INSERT_CALL = """
    insert into public.calls (company_id, retell_call_id, direction, status)
    values (%(company)s, %(retell)s, %(direction)s, 'ongoing')
    returning id
"""
_LINK_CUSTOMER = """
    update public.calls
    set customer_id = %(customer)s, customer_link_status = 'linked', customer_link_method = %(method)s,
        customer_link_confidence = %(confidence)s, customer_linked_at = now(), updated_at = now()
    where id = %(call)s
"""
_REMEMBER_BOOKING = "update public.calls set booking_id = %(booking)s, updated_at = now() where id = %(call)s"
_INSERT_APPOINTMENT = """
    insert into public.appointments (
        company_id, call_id, staff_id, calcom_v2_booking_id, source, starts_at, ends_at
    )
    values (
        %(company)s, %(call)s, %(staff)s, %(booking)s, %(source)s, %(starts)s,
        %(starts)s::timestamptz + interval '30 minutes'
    )
    returning id
"""
_DELETE_APPOINTMENT = "delete from public.appointments where call_id = %(call)s"
_END_CALL = """
    update public.calls
    set status = 'ended', session_outcome = %(outcome)s, appointment_made = %(made)s,
        appointment_link_status = %(link)s,
        appointment_linked_at = case when %(made)s then coalesce(appointment_linked_at, now()) end, updated_at = now()
    where id = %(call)s
"""
_HANDLE_WEBHOOK = "select action from guard.handle_booking_event(%s)"
_BOOKED = {"outcome": "appointment_booked", "made": True, "link": "linked"}

Values = dict[str, Any]


class Application:
    """One session of the application. Each write is a transaction of its own, so that what comes between is seen.

    A write with a fault that is refused is done again without it, or, where the fault is all there is to it, given up.
    """

    def __init__(self, connection: Connection, seed: int, guarded: bool) -> None:
        self._connection = connection
        self._seed = seed
        self._guarded = guarded
        self.refused: Counter[str] = Counter()
        self.recognised = 0

    def play(self, call: Call) -> None:
        fault = call.fault
        call_id = self._write(
            _INSERT_CALL,
            {"company": call.company, "retell": f"simulated-{call.number}", "direction": call.direction},
            {"direction": None} if fault == "direction left out" else None,
        )
        if call.customer is not None:
            self._write(
                _LINK_CUSTOMER,
                {"call": call_id, "customer": call.customer, "method": "phone_match", "confidence": 100},
                {"method": None, "confidence": None} if fault == "customer half linked" else None,
            )
        appointment = {
            "company": call.company,
            "call": call_id,
            "staff": call.staff,
            "booking": f"booking-{self._seed}-{call.number}",
            "source": "retell_webhook",
            "starts": call.slot,
        }
        if call.books:
            self._book(call, appointment)
        else:
            if fault == "appointment of an unknown booking":
                self._write(_INSERT_APPOINTMENT, None, {**appointment, "call": None})
            self._write(
                _END_CALL,
                {"call": call_id, "outcome": call.outcome, "made": False, "link": None},
                {"link": "linked"} if fault == "link status without appointment" else None,
            )

    def _book(self, call: Call, appointment: Values) -> None:
        fault = call.fault
        self._write(_REMEMBER_BOOKING, appointment)
        ended = _BOOKED | {"call": appointment["call"]}
        if fault == "phantom booking":
            # the worker died before it wrote the appointment, and the call was told that all is well
            failed = {"outcome": "creation_failed", "made": False, "link": "creation_failed"}
            self._write(_END_CALL, ended | failed, _BOOKED)
            return
        if call.by_webhook:
            self._hear_of_booking(appointment, times=2 if fault == "webhook delivered twice" else 1)
        else:
            self._write_appointment(call, appointment)
        if fault == "booking written twice":
            self._write(_INSERT_APPOINTMENT, None, {**appointment, "staff": None})
        wrong_flags: dict[str, Values] = {
            "outcome booked, flag not set": {"made": False},
            "flag set, outcome abandoned": {"outcome": "abandoned"},
        }
        self._write(_END_CALL, ended, wrong_flags.get(fault or ""))
        if fault == "appointment deleted, flags left":
            self._write(_DELETE_APPOINTMENT, appointment)

    def _write_appointment(self, call: Call, appointment: Values) -> None:
        wrong: Values | None = None
        if call.fault == "appointment without its call":
            wrong = {"call": None}
        elif call.fault == "appointment of another company":
            wrong = {"company": call.company % COMPANIES + 1}
        elif call.fault == "staff member booked twice":
            # the front desk took the slot, which the agent was told is free
            self._write(_INSERT_APPOINTMENT, {**appointment, "call": None, "booking": None, "source": "front_desk"})
            wrong = {"starts": call.slot}
            appointment = {**appointment, "starts": call.slot + timedelta(minutes=30)}
        self._write(_INSERT_APPOINTMENT, appointment, wrong)

    def _hear_of_booking(self, appointment: Values, times: int) -> None:
        """The calendar's webhook. The application finds no appointment each time; guard knows what it has handled."""
        event = {
            "triggerEvent": "BOOKING_CREATED",
            "createdAt": datetime.now(UTC).isoformat(),
            "payload": {
                "uid": appointment["booking"],
                "startTime": appointment["starts"].isoformat(),
                "endTime": (appointment["starts"] + timedelta(minutes=30)).isoformat(),
                "metadata": {"call_id": appointment["call"]},
            },
        }
        for _ in range(times):
            if self._guarded:
                row = self._connection.execute(_HANDLE_WEBHOOK, (Jsonb(event),)).fetchone()
                self.recognised += row == ("duplicate",)
            else:
                self._write(_INSERT_APPOINTMENT, {**appointment, "staff": None})

    def _write(self, statement: str, values: Values | None, fault: Values | None = None) -> int | None:
        """Write `values` as `fault` changes them; if that is refused, as they are, or not at all. Returns the id."""
        if fault is not None:
            try:
                return self._execute(statement, (values or {}) | fault)
            except psycopg.Error as error:
                rule = (error.diag.constraint_name or "").removeprefix("guard_")
                if rule not in _BROKEN:
                    raise
                self.refused[rule] += 1
        return None if values is None else self._execute(statement, values)

    def _execute(self, statement: str, values: Values) -> int | None:
        cursor = self._connection.execute(statement.encode(), values)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None
