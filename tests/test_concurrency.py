"""No interleaving of sessions leaves a committed contradiction.

Three kinds of test: sessions that write at random while an observer reads (tests/workload.py), every pair of a list of
writes in every order in which two transactions can meet, and the meetings that have an outcome of their own to assert.
The first kind is tested itself: against a synchronisation that is broken on purpose it must find a contradiction.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

import psycopg
import pytest

from tests import workload
from tests.databases import Databases, MakeDatabase
from tests.sessions import Session, two_sessions

READ_COMMITTED = "read committed"
REPEATABLE_READ = "repeatable read"
SERIALIZABLE = "serializable"

#: What a statement came to that was not refused.
DONE = "done"


@dataclass(frozen=True)
class Profile:
    """Where the rules stand. Rules that nothing repairs are always enforced: else they would only be recorded."""

    name: str
    template: str
    mode: str

    @property
    def promises(self) -> dict[str, LiteralString]:
        return workload.ENFORCED if self.mode == "enforce" else workload.CORRECTED


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("correct", "greenfield_template", "correct"),
        Profile("enforce", "greenfield_template", "enforce"),
        # local timestamps, no foreign key on call_id
        Profile("adopted-correct", "adopted_template", "correct"),
        Profile("adopted-enforce", "adopted_template", "enforce"),
    )
}


@pytest.fixture(scope="module", params=list(PROFILES))
def profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


@pytest.fixture(scope="module")
def template(profile: Profile, request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """No rows, the profile's modes, every constraint in force."""
    dsn = databases.create(request.getfixturevalue(profile.template))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("truncate appointments, calls")
        connection.execute("truncate guard.data_consistency_alerts, guard.pending_checks")
        stand(connection, profile.mode)
    yield databases.name(dsn)
    databases.drop(dsn)


@pytest.fixture
def prepared(template: str, make_database: MakeDatabase) -> str:
    return make_database(template)


def stand(connection: workload.Connection, mode: str, **modes: str) -> None:
    """Put every rule at `mode` or at its own, and its constraint in force."""
    for rule, repairable, enforceable in connection.execute(
        "select rule, repairable, enforceable from guard.rules order by rule"
    ).fetchall():
        wanted = modes.get(rule, mode if repairable or not enforceable else "enforce")
        connection.execute(
            "select guard.set_rule(%s, %s)", (rule, wanted if enforceable or wanted != "enforce" else "correct")
        )
        for (statement,) in connection.execute(
            "select statement from guard.constraint_statements(%s, %s) order by step",
            (rule, wanted in ("correct", "enforce")),
        ).fetchall():
            connection.execute(statement)


# At random


@pytest.mark.slow
@pytest.mark.parametrize("isolation", [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE])
def test_random_writes_never_contradict(prepared: str, profile: Profile, isolation: str) -> None:
    seed = random.randrange(10**6)  # noqa: S311  # not a secret
    outcome = workload.run(prepared, seed=seed, steps=60, promises=profile.promises, isolation=isolation)
    assert outcome.unexpected == [], f"seed {seed}"
    assert outcome.seen == [], f"seed {seed}"
    assert outcome.counts["committed"] > 60, f"seed {seed}: {outcome.counts}"
    assert outcome.snapshots > 20, f"seed {seed}"


#: What makes the synchronisation safe, each taken away: a function, its text, what stands there instead, and the
#: isolation in which that fails.
BROKEN = {
    "the removing side takes no lock": (
        "guard.calls_follow(bigint[])",
        "for no key update;",
        "limit 0;",
        READ_COMMITTED,
    ),
    "the adding side skips what says so already": (
        "guard.appointment_inserted()",
        "where c.id = ",
        "where c.appointment_link_status is distinct from 'linked' and c.id = ",
        READ_COMMITTED,
    ),
    "the removing side skips what says so already": (
        "guard.calls_follow(bigint[])",
        "where c.id = truth.call_id and",
        "where c.id = truth.call_id and c.appointment_made is distinct from truth.booked and",
        REPEATABLE_READ,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("function", "text", "instead", "isolation"), BROKEN.values(), ids=BROKEN.keys())
def test_random_writes_find_a_broken_synchronisation(
    make_database: MakeDatabase, greenfield_template: str, function: str, text: str, instead: str, isolation: str
) -> None:
    for seed in range(5):
        dsn = make_database(greenfield_template)
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute("select pg_get_functiondef(%s::regprocedure)", (function,)).fetchone()
            assert row is not None
            assert text in row[0], f"{function} no longer says {text!r}"
            connection.execute(row[0].replace(text, instead, 1))
        outcome = workload.run(
            dsn,
            seed=seed,
            steps=200,
            promises=workload.CORRECTED,
            isolation=isolation,
            makers=workload.ADD_AND_REMOVE,
            width=2,
            until_seen=True,
        )
        if outcome.seen:
            return
    pytest.fail("nothing was found in five tries")


# Every pair of writes. Calls 1 to 3 belong to company 1 and call 4 to company 2; call 1 has the appointments 11 and 12,
# call 2 has 21.

BEFORE = """
set session_replication_role = replica;
delete from appointments;
delete from calls;
delete from guard.pending_checks;
delete from guard.data_consistency_alerts;
insert into companies (id, name) values (1, 'A'), (2, 'B') on conflict do nothing;
insert into calls (
    id, company_id, direction, retell_call_id, booking_id, session_outcome, appointment_made, appointment_link_status,
    appointment_linked_at, created_at, updated_at
)
select
    i, case i when 4 then 2 else 1 end, 'inbound', 'call_' || i, 'booking_' || i,
    case when i < 3 then 'appointment_booked' end, i < 3, case when i < 3 then 'linked' end,
    case when i < 3 then now() end, now(), now()
from generate_series(1, 4) as i;
insert into appointments (id, company_id, call_id, source, calcom_v2_booking_id, created_at, updated_at)
values
    (11, 1, 1, 'app', 'booking_11', now(), now()),
    (12, 1, 1, 'app', 'booking_12', now(), now()),
    (21, 1, 2, 'retell_webhook', 'booking_21', now(), now());
set session_replication_role = origin;
"""

WRITES = {
    "delete 11": "delete from appointments where id = 11",
    "delete 12": "delete from appointments where id = 12",
    "delete all of 1 and 2": "delete from appointments where call_id in (1, 2)",
    "add to 1": "insert into appointments (company_id, call_id) values (1, 1)",
    "add to 2 and 1": "insert into appointments (company_id, call_id) values (1, 2), (1, 1)",
    "add to 3": "insert into appointments (company_id, call_id, source) values (1, 3, 'retell_webhook')",
    "webhook wrote 11": "update appointments set source = 'retell_webhook' where id = 11",
    "move 11 to 2": "update appointments set call_id = 2 where id = 11",
    "move 21 to 1": "update appointments set call_id = 1 where id = 21",
    "swap 1 and 2": "update appointments set call_id = 3 - call_id where call_id in (1, 2)",
    "unlink all of 1": "update appointments set call_id = null where call_id = 1",
    "replace 21": """
        with gone as (delete from appointments where id = 21)
        insert into appointments (company_id, call_id) values (1, 2)""",
    "orphan of 3": """
        insert into appointments (company_id, source, calcom_v2_booking_id)
        values (1, 'retell_webhook', 'booking_3')""",
    "upsert 21 to 3": """
        insert into appointments (company_id, call_id, calcom_v2_booking_id) values (1, 3, 'booking_21')
        on conflict (calcom_v2_booking_id) where calcom_v2_booking_id is not null
        do update set call_id = excluded.call_id""",
    "upsert 31 to 3": """
        insert into appointments (company_id, call_id, calcom_v2_booking_id) values (1, 3, 'booking_31')
        on conflict (calcom_v2_booking_id) where calcom_v2_booking_id is not null
        do update set call_id = excluded.call_id""",
    "upsert 31 to 2": """
        insert into appointments (company_id, call_id, calcom_v2_booking_id) values (1, 2, 'booking_31')
        on conflict (calcom_v2_booking_id) where calcom_v2_booking_id is not null
        do update set call_id = excluded.call_id""",
    "deny 1": """
        update calls set appointment_made = false, session_outcome = 'abandoned', appointment_link_status = null
        where id = 1""",
    "claim 2": "update calls set appointment_made = true, session_outcome = 'appointment_booked' where id = 2",
    "claim 3": """
        update calls
        set appointment_made = true, session_outcome = 'appointment_booked', appointment_link_status = 'linked'
        where id = 3""",
    "company of 1": "update calls set company_id = 2 where id = 1",
    "company of 3": "update calls set company_id = 2 where id = 3",
    "booking of 3": "update calls set booking_id = 'another' where id = 3",
    "delete call 3": "delete from calls where id = 3",
    "delete call 1": "delete from calls where id = 1",
    "delete call 2 and 21": """
        with gone as (delete from appointments where call_id = 2) delete from calls where id = 2""",
    "truncate": "truncate appointments",
}


def overlap(first: Session, second: Session, one: str, other: str, *, undo: bool = False) -> tuple[str, str, bool]:
    """The second writes before the first has ended; if it need not wait for the first, it ends before it too.

    Returns what became of each, and whether the second had to wait. With `undo` the first is rolled back.
    """
    first.begin()
    second.begin()
    outcome = first.run(one)
    second.start(other)
    waits = second.is_blocked()
    if waits:
        outcome = end(first, outcome, undo)
        return outcome, end(second, second.finish()), True
    overtaken = end(second, second.finish())
    return end(first, outcome, undo), overtaken, False


def follow(first: Session, second: Session, one: str, other: str) -> tuple[str, str]:
    """The second writes after the first has committed, and has its snapshot from before."""
    first.begin()
    second.begin()
    outcome = end(first, first.run(one))
    return outcome, end(second, second.run(other))


def end(session: Session, outcome: str, undo: bool = False) -> str:
    """Commit if the write was done. Returns what the transaction came to."""
    if undo or outcome != DONE:
        assert session.run("rollback") == DONE
        return outcome
    return session.run("commit")


def reset(connection: workload.Connection) -> None:
    connection.execute(BEFORE)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["correct", "adopted-enforce"], indirect=True, scope="module")
@pytest.mark.parametrize("isolation", [READ_COMMITTED, REPEATABLE_READ])
def test_no_pair_of_writes_contradicts(prepared: str, profile: Profile, isolation: str) -> None:
    # TRUNCATE may be refused where its snapshot is older than its lock: 0A000
    expected = {DONE, *workload.KNOWN} | ({"40001", "ZG020"} if isolation != READ_COMMITTED else set())
    wrong = []
    with (
        psycopg.connect(prepared, autocommit=True) as observer,
        two_sessions(prepared, isolation) as (first, second),
    ):

        def judge(how: str, *outcomes: str) -> None:
            seen = [f"{what} ({entity})" for what, entity in workload.contradictions(observer, profile.promises)]
            seen += [o for o in outcomes if o not in expected and not o.startswith("ZG1")]
            if seen:
                wrong.append(f"{one} | {other} | {how}: {', '.join(seen)}")
            reset(observer)

        reset(observer)
        for one, other in itertools.product(WRITES, repeat=2):
            *outcomes, waited = overlap(first, second, WRITES[one], WRITES[other])
            judge("overlap", *outcomes)
            if isolation == READ_COMMITTED and waited:
                *outcomes, _ = overlap(first, second, WRITES[one], WRITES[other], undo=True)
                judge("the first undone", *outcomes)
            elif isolation != READ_COMMITTED:
                judge("follow", *follow(first, second, WRITES[one], WRITES[other]))
    assert wrong == [], "\n".join(wrong)


# What becomes of the second of two writes.


@dataclass(frozen=True)
class Meeting:
    """Two writes that overlap: whether the second waits, what it comes to, and which calls are linked then."""

    one: str
    other: str
    waits: bool
    read_committed: tuple[str, set[int]]
    repeatable_read: tuple[str, set[int]]

    def __str__(self) -> str:
        return f"{self.one}, {self.other}"


RETRIED = "40001"
NO_SUCH_CALL = "23503"
FOREIGN = "ZG109"
ORPHANED = "ZG105"

MEETINGS = [
    # the last two of one call: the second sees that none is left, or has to try again
    Meeting("delete 11", "delete 12", True, (DONE, {2}), (RETRIED, {1, 2})),
    Meeting("unlink all of 1", "add to 1", True, (DONE, {1, 2}), (RETRIED, {2})),
    Meeting("add to 1", "unlink all of 1", True, (DONE, {1, 2}), (RETRIED, {1, 2})),
    Meeting("delete all of 1 and 2", "add to 1", True, (DONE, {1}), (RETRIED, set())),
    Meeting("add to 1", "delete all of 1 and 2", True, (DONE, {1}), (RETRIED, {1, 2})),
    Meeting("move 21 to 1", "unlink all of 1", True, (DONE, {1}), (RETRIED, {1})),
    Meeting("unlink all of 1", "move 21 to 1", True, (DONE, {1}), (RETRIED, {2})),
    Meeting("swap 1 and 2", "add to 2 and 1", True, (DONE, {1, 2}), (RETRIED, {1, 2})),
    # one row, two sessions
    Meeting("delete 11", "move 11 to 2", True, (DONE, {1, 2}), (RETRIED, {1, 2})),
    Meeting("move 11 to 2", "delete 11", True, (DONE, {1, 2}), (RETRIED, {1, 2})),
    Meeting("upsert 31 to 2", "upsert 31 to 3", True, (DONE, {1, 2, 3}), (RETRIED, {1, 2})),
    Meeting("delete 11", "upsert 21 to 3", False, (DONE, {1, 3}), (DONE, {1, 3})),
    # a call that goes
    Meeting("add to 3", "delete call 3", True, (NO_SUCH_CALL, {1, 2, 3}), (RETRIED, {1, 2, 3})),
    Meeting("delete call 3", "add to 3", True, (NO_SUCH_CALL, {1, 2}), (RETRIED, {1, 2})),
    Meeting("delete call 3", "orphan of 3", True, (DONE, {1, 2}), (RETRIED, {1, 2})),
    Meeting("booking of 3", "orphan of 3", True, (DONE, {1, 2, 3}), (RETRIED, {1, 2})),
    # a call that changes its company
    Meeting("add to 3", "company of 3", True, (FOREIGN, {1, 2, 3}), (RETRIED, {1, 2, 3})),
    Meeting("company of 3", "add to 3", True, (FOREIGN, {1, 2}), (RETRIED, {1, 2})),
    # the application writes the flags itself
    Meeting("deny 1", "unlink all of 1", True, (DONE, {2}), (RETRIED, {1, 2})),
    Meeting("unlink all of 1", "deny 1", True, (DONE, {2}), (RETRIED, {2})),
    Meeting("claim 3", "add to 3", True, (DONE, {1, 2, 3}), (RETRIED, {1, 2})),
    Meeting("add to 3", "claim 3", True, (DONE, {1, 2, 3}), (RETRIED, {1, 2, 3})),
    Meeting("claim 2", "delete all of 1 and 2", True, (DONE, set()), (RETRIED, {1, 2})),
]


@pytest.mark.parametrize("meeting", MEETINGS, ids=str)
def test_second_of_two_writes(database: str, meeting: Meeting) -> None:
    with psycopg.connect(database, autocommit=True) as observer:
        stand(observer, "correct")
        for isolation, expected in (
            (READ_COMMITTED, meeting.read_committed),
            (REPEATABLE_READ, meeting.repeatable_read),
        ):
            reset(observer)
            with two_sessions(database, isolation) as (first, second):
                one, other, waited = overlap(first, second, WRITES[meeting.one], WRITES[meeting.other])
            linked = {
                row[0] for row in observer.execute("select id from calls where appointment_link_status = 'linked'")
            }
            assert (one, waited, (other, linked)) == (DONE, meeting.waits, expected), isolation
            assert workload.contradictions(observer, workload.CORRECTED) == [], isolation


@pytest.mark.parametrize(("mode", "expected"), [("observe", DONE), ("correct", DONE), ("enforce", "ZG104")])
def test_upsert_meets_a_call_that_is_deleted_meanwhile(database: str, mode: str, expected: str) -> None:
    """It was let through as an update of a call that is there, and is judged as the insert that it became."""
    with (
        psycopg.connect(database, autocommit=True) as observer,
        two_sessions(database) as (first, second),
    ):
        reset(observer)
        stand(observer, "correct", missing_direction=mode)
        first.begin()
        assert first.run("delete from calls where id = 3") == DONE
        second.start(
            """
            insert into calls (id, company_id, retell_call_id, status) values (9, 1, 'call_3', 'ended')
            on conflict (retell_call_id) do update set status = excluded.status
            """
        )
        assert second.is_blocked()
        assert first.run("commit") == DONE
        assert second.finish() == expected
        written = observer.execute(
            "select c.direction, a.auto_corrected from calls as c"
            " left join guard.data_consistency_alerts as a on a.entity_id = c.id where c.retell_call_id = 'call_3'"
        ).fetchall()
        assert written == {"observe": [(None, False)], "correct": [("inbound", True)], "enforce": []}[mode]


LOCKING = {
    "insert": "insert into appointments (company_id, call_id) select 1, i from generate_series(9, 1, -1) as i",
    "delete": "delete from appointments where call_id between 1 and 9",
    "update": "update appointments set call_id = call_id % 9 + 1 where call_id between 1 and 9",
}


@pytest.mark.parametrize("write", LOCKING.values(), ids=LOCKING.keys())
def test_calls_are_locked_in_the_order_of_their_ids(database: str, write: str) -> None:
    """Two statements over the same calls then never wait for each other in a circle."""
    with (
        psycopg.connect(database, autocommit=True) as observer,
        two_sessions(database) as (holder, writer),
    ):
        observer.execute("insert into companies (id, name) values (1, 'A')")
        # the rows lie in another order than their ids
        observer.execute(
            "insert into calls (id, company_id, direction) select 10 - i, 1, 'inbound' from generate_series(1, 9) as i"
        )
        observer.execute("insert into appointments (company_id, call_id) select 1, i from generate_series(1, 9) as i")
        holder.begin()
        assert holder.run("select from calls where id = 5 for no key update") == DONE
        writer.start(write)
        assert writer.is_blocked()
        free = observer.execute("select id from calls order by id for no key update skip locked").fetchall()
        holder.run("rollback")
        assert writer.finish() == DONE
        assert free == [(6,), (7,), (8,), (9,)]


# Enforcing before the index is there

TAKEN = {
    "duplicate_booking": (
        "insert into appointments (id, company_id, calcom_v2_booking_id) values ({0}, 1, 'one')",
        "update appointments set calcom_v2_booking_id = 'one' where id = {0}",
        "ZG110",
    ),
    "overlapping_appointment": (
        """insert into appointments (id, company_id, staff_id, starts_at, ends_at)
        values ({0}, 1, 1, '2030-01-01 09:00', '2030-01-01 10:00')""",
        "update appointments set staff_id = 1, starts_at = '2030-01-01 09:30', ends_at = '2030-01-01 10:30' "
        "where id = {0}",
        "ZG111",
    ),
}


@pytest.mark.parametrize("isolation", [READ_COMMITTED, SERIALIZABLE])
@pytest.mark.parametrize("rule", TAKEN)
def test_enforced_without_its_index(database: str, rule: str, isolation: str) -> None:
    """The second of two sessions waits for the first, and sees what it wrote."""
    add, move, refusal = TAKEN[rule]
    expected = refusal if isolation == READ_COMMITTED else RETRIED
    with psycopg.connect(database, autocommit=True) as observer:
        reset(observer)
        stand(observer, "correct")
        for (statement,) in observer.execute("select statement from guard.constraint_statements(%s, false)", (rule,)):
            observer.execute(statement)
        observer.execute("insert into staff (id, company_id, name) values (1, 1, 'S')")
        for number, other in enumerate((add.format(100), move.format(21))):
            with two_sessions(database, isolation) as (first, second):
                outcomes = overlap(first, second, add.format(90 + number), other)
            assert outcomes == (DONE, expected, True), other
            assert observer.execute(f"select from guard.{rule}").fetchall() == []
            with two_sessions(database, isolation) as (first, second):
                assert overlap(first, second, f"delete from appointments where id = {90 + number}", "select") == (
                    DONE,
                    DONE,
                    False,
                )


def test_many_writes_of_one_transaction_take_few_turns(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        reset(connection)
        connection.execute("drop index guard_duplicate_booking")
        connection.execute("select guard.set_rule('duplicate_booking', 'enforce')")
        with connection.transaction():
            connection.execute(
                "insert into appointments (id, company_id, calcom_v2_booking_id) "
                "select 100 + i, 1, 'bulk_' || i from generate_series(1, 5000) as i"
            )
            locks = connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
    assert locks == (256,)


# Moving a rule


def test_a_rule_is_not_raised_while_the_one_it_rests_on_is_lowered(database: str) -> None:
    with two_sessions(database) as (one, other):
        one.begin()
        assert one.run("select guard.set_rule('inconsistent_link_status', 'observe')") == DONE
        other.start("select guard.set_rule('tenant_mismatch', 'enforce')")
        assert other.is_blocked()
        assert one.run("commit") == DONE
        assert other.finish() == "ZG015"


def test_a_rule_is_moved_while_transactions_write(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as observer,
        two_sessions(database) as (writer, operator),
    ):
        reset(observer)
        rules = [row[0] for row in observer.execute("select rule from guard.rules order by rule")]
        writer.begin()
        assert writer.run("delete from appointments where id = 11") == DONE
        assert writer.run("update calls set direction = null, session_outcome = 'abandoned' where id = 2") == DONE
        operator.begin()
        for rule in rules:
            operator.start(f"select guard.set_rule('{rule}', 'observe')")
            assert not operator.is_blocked()
            assert operator.finish() == DONE

        # nor does the writer wait for the operator, and until the operator commits the old mode holds
        writer.start("insert into calls (id, company_id) values (5, 1)")
        assert not writer.is_blocked()
        assert writer.finish() == DONE
        assert operator.run("commit") == DONE
        assert writer.run("insert into calls (id, company_id) values (6, 1)") == DONE
        assert writer.run("commit") == DONE
        assert observer.execute("select id, direction from calls where id in (5, 6) order by id").fetchall() == [
            (5, "inbound"),
            (6, None),
        ]


def test_a_month_is_made_while_alerts_are_written(database: str) -> None:
    """What was written into the default partition before the month was locked is moved, too."""
    month = "to_char(now() at time zone 'UTC', 'YYYY_MM')"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"do $$begin execute 'drop table guard.data_consistency_alerts_' || {month}; end$$")
        with two_sessions(database) as (writer, maker):
            writer.begin()
            assert (
                writer.run(
                    "insert into guard.data_consistency_alerts (alert_type, severity, entity_type, description)"
                    " values ('x', 'info', 'call', 'x')"
                )
                == DONE
            )
            maker.start("select guard.ensure_alert_partitions(now(), 0)")
            assert maker.is_blocked()
            assert writer.run("commit") == DONE
            assert maker.finish() == DONE
        (moved,) = connection.execute(
            "select count(*) from guard.data_consistency_alerts"
            f" where tableoid = to_regclass('guard.data_consistency_alerts_' || {month})"
        ).fetchone() or (0,)
    assert moved == 1
