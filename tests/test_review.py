"""The review queue under several people at once, and webhooks under several deliveries at once."""

from __future__ import annotations

import json
import threading
from collections import Counter

import psycopg
import pytest

from tests.databases import RunGuard


@pytest.fixture
def queue(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("insert into companies (id, name) values (1, 'A')")
        connection.execute(
            "insert into calls (id, company_id, direction, retell_call_id, booking_id)"
            " select g, 1, 'inbound', 'call_' || g, 'bk_' || g from generate_series(1, 60) g"
        )
    return database


def together(dsn: str, statements: list[str]) -> list[list[tuple[object, ...]]]:
    """Run each statement in a session of its own, all at once."""
    results: list[list[tuple[object, ...]]] = [[] for _ in statements]
    gate = threading.Barrier(len(statements))

    def run(position: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            gate.wait()
            results[position] = connection.execute(statements[position].encode()).fetchall()

    threads = [threading.Thread(target=run, args=(position,)) for position in range(len(statements))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_people_never_get_one_item(queue: str) -> None:
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute("select guard.queue_review(g, 'x') from generate_series(1, 60) g")
    taken: Counter[int] = Counter()
    lock = threading.Lock()

    def work(name: str) -> None:
        with psycopg.connect(queue, autocommit=True) as connection:
            while row := connection.execute("select id from guard.take_review(%s)", (name,)).fetchone():
                with lock:
                    taken[row[0]] += 1

    people = [threading.Thread(target=work, args=(f"p{n}",)) for n in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert len(taken) == 60
    assert set(taken.values()) == {1}


def test_queueing_at_once_makes_one_item(queue: str) -> None:
    items = together(queue, ["select guard.queue_review(1, 'x')"] * 8)
    assert len({rows[0][0] for rows in items}) == 1


def test_one_event_delivered_at_once_is_handled_once(queue: str) -> None:
    event = json.dumps(
        {
            "triggerEvent": "BOOKING_CREATED",
            "createdAt": "2026-01-01T10:00:00Z",
            "payload": {"uid": "bk_1", "startTime": "2030-01-01T09:00:00Z", "endTime": "2030-01-01T09:30:00Z"},
        }
    )
    actions = together(queue, [f"select action from guard.handle_booking_event('{event}')"] * 8)
    assert Counter(rows[0][0] for rows in actions) == {"created": 1, "duplicate": 7}
    with psycopg.connect(queue) as connection:
        assert connection.execute("select count(*) from appointments").fetchone() == (1,)


def test_a_webhook_and_a_booking_make_one_appointment(queue: str) -> None:
    event = json.dumps(
        {"triggerEvent": "BOOKING_CREATED", "createdAt": "2026-01-01T10:00:00Z", "payload": {"uid": "bk"}}
    )
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute("select guard.begin_booking('k', 1, '{}')")
        connection.execute("select guard.mark_remote_booked('k', 'bk')")
    together(
        queue,
        [
            "select state from guard.record_booking('k', '{}')",
            f"select action from guard.handle_booking_event('{event}')",
        ],
    )
    with psycopg.connect(queue) as connection:
        assert connection.execute("select call_id from appointments").fetchall() == [(1,)]
        assert connection.execute("select appointment_id is not null from guard.booking_intents").fetchone() == (True,)


@pytest.mark.slow
def test_failures_successes_people_and_the_job_at_once(queue: str) -> None:
    """Nobody meets a deadlock, and in the end a call requires a person if and only if one is asked."""
    book = "select guard.begin_booking('{0}', {1}, '{{}}')"
    fail = "select guard.fail_booking('{0}', 'calcom_booking_failed', 'outcome_unknown')"
    succeed = (
        "select guard.mark_remote_booked('{0}', '{0}')",
        "select guard.record_booking('{0}', '{{}}')",
        "select guard.validate_booking('{0}')",
    )
    resolve = "select guard.resolve_review(id, 'done') from guard.manual_review_queue where status = 'in_progress'"
    work: dict[str, list[str]] = {
        "failures": [book, fail],
        "refusals": [book, fail.replace("outcome_unknown", "circuit_open")],
        "late": [book, fail, *succeed],
        "successes": [book, *succeed],
        "person": ["select guard.take_review('ann')", resolve],
        "job": ["update guard.manual_review_queue set attempts = 0", "select * from guard.process_review_queue()"],
    }
    errors: list[str] = []

    def run(name: str, statements: list[str]) -> None:
        with psycopg.connect(queue, autocommit=True) as connection:
            for turn in range(60):
                for statement in statements:
                    try:
                        connection.execute(statement.format(f"{name}{turn}", turn % 3 + 1).encode())
                    except psycopg.Error as error:
                        errors.append(f"{name}: {error}")

    threads = [threading.Thread(target=run, args=item) for item in work.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with psycopg.connect(queue) as connection:
        contradictions = """
            select c.id from calls c
            where c.requires_manual_processing is distinct from exists (
                select from guard.manual_review_queue q where q.call_id = c.id and q.status <> 'resolved'
            ) and c.id <= 3
        """
        assert connection.execute(contradictions).fetchall() == []
        unnamed = """
            select i.key from guard.booking_intents i
            where i.failure_reason = 'outcome_unknown' and not exists (
                select from guard.manual_review_queue q
                where jsonb_path_exists(q.context, 'lax $.**.key ? (@ == $key)', jsonb_build_object('key', i.key))
            )
        """
        assert connection.execute(unnamed).fetchall() == []


@pytest.mark.slow
def test_the_command_works_the_queue(queue: str, guard: RunGuard) -> None:
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute(
            "update calls set from_number = '+4915112345678', booking_failure_reason = '+4915112345678' where id = 1"
        )
        connection.execute("select guard.rollback_booking(1, 'calcom_booking_failed')")
    listed = json.loads(guard(queue, "review", "list", "--json").stdout)
    assert [(item["call_id"], item["priority"]) for item in listed] == [(1, 2)]
    taken = json.loads(guard(queue, "review", "take", "--as", "ann", "--json").stdout)
    assert (taken["status"], taken["assignee"]) == ("in_progress", "ann")
    item = str(taken["id"])
    assert json.loads(guard(queue, "review", "release", item, "--json").stdout)["status"] == "pending"
    nobody = guard(queue, "review", "take", "--as", "")
    assert (nobody.returncode, "ZG306" in nobody.stderr) == (1, True)
    resolved = json.loads(guard(queue, "review", "resolve", item, "called back", "--json").stdout)
    assert (resolved["status"], resolved["resolution"]) == ("resolved", "called back")
    again = guard(queue, "review", "resolve", item, "called back")
    assert again.returncode == 1
    assert "ZG305" in again.stderr
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute("select guard.queue_review(2, 'missing_appointment')")
        expected = connection.execute(
            "select r.description, r.runbook from guard.rules as r where r.rule = 'missing_appointment'"
        ).fetchone()
    taken = json.loads(guard(queue, "review", "take", "--json").stdout)
    shown = json.loads(guard(queue, "review", "show", str(taken["id"]), "--json").stdout)
    assert (taken["description"], taken["runbook"]) == (shown["description"], shown["runbook"]) == expected
    known = guard(queue, "call", "1", "--json").stdout
    assert "booking_rolled_back" in [alert["alert_type"] for alert in json.loads(known)["alerts"]]
    assert "5112345" not in known + guard(queue, "call", "1").stdout
    unknown = guard(queue, "call", "99")
    assert unknown.returncode == 1
    assert "There is no call 99" in unknown.stderr
