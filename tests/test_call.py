"""guard call: what support staff see of one call."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.processes import invoke

PHONE = "+4915112345678"


@pytest.fixture
def booked(database: str) -> str:
    """Call 1 has a booking that was moved, and that another company's appointment took over."""
    created = json.dumps(
        {
            "triggerEvent": "BOOKING_RESCHEDULED",
            "createdAt": "2026-01-01T10:00:00Z",
            "payload": {"uid": "new", "rescheduleUid": "old", "startTime": "2030-01-01T09:00:00Z"},
        }
    )
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "insert into companies (id, name) values (1, 'A'), (2, 'B')",
            "insert into calls (id, company_id, direction, from_number) values (1, 1, 'inbound', %(phone)s)",
            "insert into calls (id, company_id, direction) values (2, 1, 'inbound')",
            "select guard.begin_booking('key', 1, '{}')",
            "select guard.mark_remote_booked('key', 'old')",
            "select guard.record_booking('key', '{}')",
            "select guard.validate_booking('key')",
            "select guard.handle_booking_event(%(created)s)",
            "select guard.queue_review(1, 'call_back', jsonb_build_object('phone', %(phone)s::text))",
            "update appointments set company_id = 2",
            "update calls set direction = null where id = 1",
            "select guard.detect('1 hour')",
        ):
            connection.execute(statement.encode(), {"phone": PHONE, "created": created})
    return database


def test_everything_known_of_a_call_in_one_look(booked: str) -> None:
    shown = invoke(booked, "call", "1", COLUMNS="200")
    assert (shown.exit_code, shown.stderr) == (0, "")
    known = json.loads(invoke(booked, "call", "1", "--json").stdout)
    lists = {name: rows for name, rows in known.items() if name != "call"}
    assert [name for name, rows in lists.items() if not rows] == ["baseline"]
    assert "None: known since adoption." in shown.stdout
    lines = shown.stdout.splitlines()
    for name in lists.keys() - {"baseline", "intents"}:
        assert name.replace("_", " ") in [line.strip() for line in lines], name
    for fact in (
        "***678",
        "id  status  company",
        "tenant_mismatch",
        "appointment 1",
        "BOOKING_RESCHEDULED",
        "superseded",
        "direction: - → inbound",
        "call_back",
        "waiting",
    ):
        assert fact in shown.stdout
    for output in (shown.stdout, json.dumps(known)):
        assert "5112345" not in output


def test_it_fits_a_terminal(booked: str) -> None:
    for columns in ("80", "120"):
        shown = invoke(booked, "call", "1", COLUMNS=columns).stdout
        assert max(map(len, shown.splitlines())) <= int(columns)


def test_a_call_of_which_nothing_is_known(booked: str) -> None:
    shown = invoke(booked, "call", "2").stdout
    assert "None: appointments, remote bookings, booking intents, validations, webhook events, pending checks" in shown
    for unknown in ("99", "9" * 20):
        refused = invoke(booked, "call", unknown)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "There is no call 99. Give the id of a row of public.calls." in invoke(booked, "call", "99").stderr


def test_an_operator_without_rights_on_the_tables_may_ask(booked: str) -> None:
    name = booked.rpartition("/")[2]
    with psycopg.connect(booked, autocommit=True) as connection:
        connection.execute(f"create role operator_{name} login in role guard_operator".encode())
    try:
        asked = invoke(booked.replace("postgres@", f"operator_{name}@"), "call", "1")
        assert (asked.exit_code, asked.stderr) == (0, "")
    finally:
        with psycopg.connect(booked, autocommit=True) as connection:
            connection.execute(f"drop role operator_{name}".encode())
