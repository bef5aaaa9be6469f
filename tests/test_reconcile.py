"""Detection and reconciliation with several sessions at once, interrupted, and by the command."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from guard import verify
from tests.databases import RunGuard
from tests.processes import start
from tests.sessions import two_sessions

pytestmark = pytest.mark.slow

#: The defects of 1000 legacy calls that guard repairs.
REPAIRABLE = {
    "session_outcome_mismatch",
    "appointment_made_mismatch",
    "missing_appointment",
    "missing_direction",
    "inconsistent_link_status",
    "inconsistent_customer_link",
}


@pytest.fixture
def dirty(adopted: str) -> str:
    """An adopted database whose rules have just been raised to correct."""
    execute(adopted, "select guard.set_rule(r.rule, 'correct') from guard.rules as r where r.enforceable")
    return adopted


def execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def violations(guard: RunGuard, dsn: str) -> dict[str, int]:
    audit = json.loads(guard(dsn, "audit", "--json").stdout)
    assert audit["consistency_rate_pct"] >= 99.5
    return {rule["rule"]: rule["violations"] for rule in audit["rules"]}


def at_once(*works: Callable[[], object]) -> list[object]:
    barrier = threading.Barrier(len(works))

    def work(one: Callable[[], object]) -> object:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(work, works))


def test_the_command_repairs_and_can_undo(dirty: str, guard: RunGuard) -> None:
    planned = json.loads(guard(dirty, "reconcile", "--dry-run", "--json").stdout)
    assert sum(rule["repaired"] for rule in planned) == 70

    done = guard(dirty, "reconcile", "--batch", "7", "--pause", "0", "--json")

    assert done.returncode == 2, done.stderr  # what only a person can decide still stands
    tally = {rule["rule"]: (rule["examined"], rule["repaired"], rule["queued"]) for rule in json.loads(done.stdout)}
    assert tally["missing_direction"] == (10, 10, 0)
    assert tally["orphaned_appointment"] == (20, 10, 10)
    assert tally["missing_appointment"] == (20, 20, 20)  # ten came to light by repairing their outcome
    left = violations(guard, dirty)
    assert all(left[rule] == 0 for rule in REPAIRABLE)
    assert execute(dirty, "select count(*) from guard.manual_review_queue where status = 'pending'") == [(33,)]

    refused = guard(dirty, "undo", "--since", "1h")
    assert refused.returncode == 1
    for command in re.findall(r"guard (rules set \w+ --mode observe)", refused.stderr):
        guard(dirty, *command.split())
    assert guard(dirty, "undo", "--since", "1h").returncode == 0
    counts = json.loads(guard(dirty, "audit", "--json").stdout)["rules"]
    assert {r["rule"]: r["violations"] for r in counts}["session_outcome_mismatch"] == 10


@pytest.mark.parametrize(("details", "where"), [("a.id", "1 / (a.id - a.id) > 0"), ("1 / (a.id - a.id)", "true")])
def test_a_rule_that_fails_is_named_and_stops_no_other(dirty: str, guard: RunGuard, details: str, where: str) -> None:
    """Whether its view fails when it is counted, or only when it is read."""
    execute(
        dirty,
        f"""
        create or replace view guard.tenant_mismatch with (security_invoker = true) as
        select
            'tenant_mismatch' as rule, 'critical' as severity, 'appointment' as entity_type, a.id as entity_id,
            a.company_id, now() as occurred_at, to_jsonb({details}) as details, a.id as row_id,
            a.created_at as row_created_at
        from public.appointments as a
        where {where}
        """,
    )

    planned = guard(dirty, "reconcile", "--dry-run")
    assert planned.returncode == 1, planned.stderr
    assert "failed: 22012: division by zero" in planned.stdout
    done = guard(dirty, "reconcile", "--json")
    assert done.returncode == 1, done.stderr
    assert [(rule["rule"], rule["note"]) for rule in json.loads(done.stdout) if rule["note"]] == [
        ("tenant_mismatch", "failed: 22012: division by zero")
    ]
    assert sum(rule["repaired"] for rule in json.loads(done.stdout)) == 80

    taken = guard(dirty, "incidents", "baseline", "--take")
    assert taken.returncode == 1
    assert "tenant_mismatch failed, and was not taken: 22012: division by zero" in taken.stderr
    assert "orphaned_appointment" in taken.stdout


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on(dirty: str, guard: RunGuard) -> None:
    for seconds in (0.5, 0.7, 0.9):
        process = start(dirty, "reconcile", "--batch", "1", "--pause", "0.01")
        time.sleep(seconds)
        process.kill()
        process.communicate()
    assert guard(dirty, "reconcile", "--pause", "0").returncode == 2

    assert all(violations(guard, dirty)[rule] == 0 for rule in REPAIRABLE)
    assert execute(dirty, "select count(*) from guard.manual_review_queue") == [(33,)]
    # whatever was changed has its alert, once
    assert execute(
        dirty,
        """
        select alert_type, count(*)
        from guard.data_consistency_alerts
        where metadata ->> 'by' = 'repair' and entity_type = 'call' and alert_type <> 'inconsistent_link_status'
        group by alert_type
        order by alert_type
        """,
    ) == [
        ("appointment_made_mismatch", 10),
        ("inconsistent_customer_link", 10),
        ("missing_appointment", 20),
        ("missing_direction", 10),
        ("session_outcome_mismatch", 10),
    ]


def test_two_at_once_repair_and_queue_once(dirty: str, guard: RunGuard) -> None:
    at_once(*[lambda: guard(dirty, "reconcile", "--batch", "5", "--pause", "0")] * 2)
    guard(dirty, "reconcile")

    assert all(violations(guard, dirty)[rule] == 0 for rule in REPAIRABLE)
    assert execute(
        dirty, "select count(*), count(distinct (call_id, subject, reason)) from guard.manual_review_queue"
    ) == [(33, 33)]


def test_several_looks_at_once_open_each_incident_once(adopted: str) -> None:
    at_once(*[lambda: execute(adopted, "select guard.detect('10 years')")] * 4)

    [(incidents, alerts, messages)] = execute(
        adopted,
        """
        select
            (select count(*) from guard.incidents),
            (select count(*) from guard.data_consistency_alerts where metadata ->> 'mode' = 'detect'),
            (select count(*) from guard.notifications)
        """,
    )
    assert incidents == alerts == messages == 83


def test_several_judges_share_the_work(database: str) -> None:
    execute(database, "insert into companies (id, name) values (1, 'A')")
    execute(
        database,
        """
        insert into calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
        select i, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour'
        from generate_series(1, 200) as i
        """,
    )
    execute(database, "update guard.pending_checks set due_at = now()")

    judged = at_once(*[lambda: execute(database, "select judged from guard.judge_pending(50)")] * 4)

    assert [row for rows in judged for row in rows] == [(50,)] * 4  # type: ignore[attr-defined]
    assert execute(database, "select count(*), count(distinct call_id) from guard.manual_review_queue") == [(200, 200)]
    assert execute(database, "select count(*) from guard.missing_appointment") == [(0,)]


def in_background(pool: ThreadPoolExecutor, dsn: str, statement: str) -> Callable[[], object]:
    return pool.submit(execute, dsn, statement).result


def test_no_writer_waits_for_who_waits_for_a_detection(database: str) -> None:
    """A detection of everything takes minutes; what is judged and repaired meanwhile waits, with no row locked."""
    execute(database, "insert into companies (id, name) values (1, 'A')")
    execute(
        database,
        """
        insert into calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
        values (1, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour')
        """,
    )
    execute(database, "update guard.pending_checks set due_at = now()")
    execute(database, "select * from guard.detect('1 day')")
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'"
    with psycopg.connect(database) as detection, ThreadPoolExecutor(2) as pool:
        detection.execute("select * from guard.detect('1 day')")
        detection.execute("update guard.incidents set last_seen_at = now()")
        judged = in_background(pool, database, "select judged from guard.judge_pending()")
        reconciled = in_background(pool, database, "select sum(repaired) from guard.reconcile(false)")
        until = time.monotonic() + 20
        while execute(database, waiting) != [(2,)] and time.monotonic() < until:
            time.sleep(0.05)

        execute(database, "set lock_timeout = '5s'; update calls set status = 'ended' where id = 1")
        detection.commit()
        assert judged() == [(1,)]
        reconciled()
    assert execute(database, "select appointment_made from calls") == [(False,)]
    assert execute(database, "select place, message from guard.faults") == []


def test_an_appointment_whose_call_is_held_is_left_for_the_next_time(dirty: str) -> None:
    """Else the holder, coming for the appointment, would meet a deadlock; and what he wrote would count as a repair."""
    reconcile = "select repaired, queued from guard.reconcile(false, 'orphaned_appointment')"
    with psycopg.connect(dirty) as writer, psycopg.connect(dirty, options="-c lock_timeout=5s") as repairer:
        writer.execute(
            """
            update calls set status = 'rung off' where booking_id in (
                select a.calcom_v2_booking_id from appointments as a inner join guard.orphaned_appointment as o
                on a.id = o.entity_id
            )
            """
        )
        assert repairer.execute(reconcile).fetchall() == [(0, 10)]
    assert execute(dirty, reconcile) == [(10, 0)]
    changed = """{"changes": [{"column": "status"}]}"""
    assert execute(dirty, f"select count(*) from guard.data_consistency_alerts where metadata @> '{changed}'") == [(0,)]


@pytest.fixture
def booking(database: str) -> Iterator[psycopg.Connection]:
    """A session that has written an appointment for call 1 and not committed it; the call's grace is over."""
    execute(database, "insert into companies (id, name) values (1, 'A')")
    execute(
        database,
        """
        insert into calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
        values (1, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour')
        """,
    )
    execute(database, "update guard.pending_checks set due_at = now()")
    with psycopg.connect(database) as connection:
        yield connection


@pytest.mark.parametrize("follow", ["correct", "observe", "off"])
@pytest.mark.parametrize("key", ["with a foreign key", "without"])
def test_a_booking_under_way_is_not_taken_back(
    database: str, booking: psycopg.Connection, follow: str, key: str
) -> None:
    execute(database, f"select guard.set_rule('inconsistent_link_status', '{follow}')")
    if key == "without":
        execute(database, "alter table appointments drop constraint appointments_call_id_fkey")
    booking.execute("insert into appointments (company_id, call_id) values (1, 1)")

    assert execute(database, "select * from guard.judge_pending()") == [(1, 1)]
    booking.commit()

    assert execute(database, "select appointment_made, session_outcome from calls") == [(True, "appointment_booked")]
    assert execute(database, "select count(*) from guard.manual_review_queue") == [(0,)]
    execute(database, "select * from guard.detect()")
    assert execute(
        database, "select count(*) from guard.incidents where rule = 'missing_appointment' and status = 'open'"
    ) == [(0,)]


def test_undo_sees_what_was_written_while_it_waited(dirty: str) -> None:
    [(call,)] = execute(dirty, "select min(entity_id) from guard.missing_direction")
    execute(dirty, "select * from guard.reconcile(false, 'missing_direction')")
    execute(dirty, "select guard.set_rule(r.rule, 'observe') from guard.rules as r")
    with two_sessions(dirty) as (writer, operator):
        writer.begin()
        assert writer.run(f"update calls set direction = 'outbound' where id = {call}") == "done"
        operator.start("select * from guard.undo(now() - interval '1 hour')")
        assert operator.is_blocked()
        assert writer.run("commit") == "done"
        assert operator.finish() == "done"

    assert execute(dirty, f"select direction from calls where id = {call}") == [("outbound",)]
    assert execute(dirty, "select count(*) from calls where direction is null") == [(9,)]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("follow", ["correct", "observe"])
def test_a_booking_made_since_the_snapshot_is_not_taken_back(
    database: str, booking: psycopg.Connection, follow: str, isolation: str
) -> None:
    execute(database, f"select guard.set_rule('inconsistent_link_status', '{follow}')")
    with two_sessions(database, isolation) as (judge, _):
        judge.begin()
        booking.execute("insert into appointments (company_id, call_id) values (1, 1)")
        booking.commit()
        assert judge.run("select * from guard.judge_pending()") in {"done", "40001"}
        judge.run("commit")

    assert execute(database, "select appointment_made, session_outcome from calls") == [(True, "appointment_booked")]


def test_incidents_are_worked_by_command(adopted: str, guard: RunGuard) -> None:
    execute(adopted, "select guard.detect('10 years')")
    listed = json.loads(guard(adopted, "incidents", "list", "--rule", "tenant_mismatch", "--json").stdout)
    assert [incident["entity_type"] for incident in listed] == ["appointment"]
    number = str(listed[0]["id"])

    assert guard(adopted, "incidents", "ack", number, "--note", "looking").returncode == 0
    assert guard(adopted, "incidents", "assign", number, "ann").returncode == 0
    assert guard(adopted, "incidents", "snooze", number, "2h").returncode == 0
    shown = json.loads(guard(adopted, "incidents", "show", number, "--json").stdout)
    assert (shown["status"], shown["assignee"], shown["note"]) == ("snoozed", "ann", "looking")
    assert guard(adopted, "incidents", "resolve", number, "--false").returncode == 0
    execute(adopted, "select guard.set_rule('tenant_mismatch', 'correct')")
    left = guard(adopted, "reconcile", "--rule", "tenant_mismatch")
    assert (left.returncode, left.stdout.splitlines()[-1]) == (0, "tenant_mismatch: 1 called false, left alone")
    assert len(json.loads(guard(adopted, "incidents", "list", "--json", "--limit", "1000").stdout)) == 82

    assert guard(adopted, "incidents", "baseline", "--take").returncode == 0
    known = json.loads(guard(adopted, "incidents", "baseline", "--json").stdout)
    assert sum(rule["standing"] for rule in known) == 83
    assert guard(adopted, "incidents", "list").stdout == f"Nothing stands open.\n\n{verify.NO_SCHEDULER}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("incidents", "ack", "999999"), "there is no incident 999999"),
        (("incidents", "show", "-1"), "No such option"),
        (("incidents", "snooze", "1", "yesterday"), "is no moment"),
        (("incidents", "snooze", "1", "2000-01-01"), "snoozed until a moment that is still to come"),
        (("incidents", "snooze", "1", "2000-01-01"), "Say until when, as in: guard incidents snooze 17 2h"),
        (("incidents", "assign", "1", ""), "an assignee has 1 to 200 characters"),
        (("incidents", "assign", "1", " "), "an assignee has 1 to 200 characters"),
        (("incidents", "list", "--company", "999999"), "There is no company 999999"),
        (("incidents", "baseline", "--take", "--rule", "nonsense"), "there is no rule 'nonsense'"),
        (("reconcile", "--rule", "nonsense"), "nothing to reconcile for nonsense"),
        (("reconcile", "--batch", "0"), "0 is not in the range"),
        (("undo",), "Missing option '--since'"),
        (("undo", "--since", "99999999d"), "is no moment"),
        (("undo", "--since", "2999-01-01"), "ZG407"),
    ],
)
def test_bad_input_gets_one_clear_line(
    database: str, guard: RunGuard, arguments: tuple[str, ...], message: str
) -> None:
    completed = guard(database, *arguments)

    assert completed.returncode == 1
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr
