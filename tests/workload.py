"""Sessions that write calls and appointments at random, and an observer that looks for a contradiction all the while.

Every session has its own random numbers, seeded from one seed. Each step is a transaction of one to four statements,
some in savepoints; some transactions are rolled back. What may be refused is listed, and anything else is a failure.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql

from tests.sessions import OPTIONS

Connection = psycopg.Connection[tuple[Any, ...]]
Statement = tuple[str, dict[str, Any]]
Maker = Callable[["Writer"], Statement]

T = TypeVar("T")

#: The transaction may be tried again: serialization failure, deadlock.
RETRY = {"40001", "40P01"}

#: A constraint that the application knows: a call that is gone, a call that is named, a booking or a slot taken twice.
KNOWN = {"23503", "23505", "23P01"}

#: Facts, and claims within their grace, are not contradictions.
NOT_JUDGED = ("recent_creation_failure", "missing_appointment", "orphaned_appointment")

#: What the rules that are repaired later promise meanwhile.
PROMISED: dict[str, LiteralString] = {
    "a call says linked and has no appointment": """
        select c.id from calls as c
        where c.appointment_link_status = 'linked'
            and not exists (select from appointments as a where a.call_id = c.id)""",
    "a call has an appointment and does not say so": """
        select c.id from calls as c
        where exists (select from appointments as a where a.call_id = c.id)
            and (
                c.appointment_made is not true
                or c.appointment_link_status is distinct from 'linked'
                or c.session_outcome is not null and c.session_outcome <> 'appointment_booked'
            )""",
}
CORRECTED = PROMISED | {
    "a claim is neither backed nor queued for a check": """
        select c.id from calls as c
        where c.appointment_made
            and not exists (select from appointments as a where a.call_id = c.id)
            and not exists (select from guard.pending_checks as p where p.call_id = c.id)""",
    "an orphan is not recorded": """
        select a.id from appointments as a
        where a.source = 'retell_webhook'
            and not exists (select from calls as c where c.id = a.call_id)
            and not exists (
                select from guard.data_consistency_alerts as d
                where d.alert_type = 'orphaned_appointment' and d.entity_id = a.id and not d.auto_corrected
            )""",
}
ENFORCED = PROMISED | {
    "a claim is not backed": """
        select c.id from calls as c
        where c.appointment_made and not exists (select from appointments as a where a.call_id = c.id)""",
    "an appointment is an orphan": "select a.entity_id from guard.orphaned_appointment as a",
}


def contradictions(connection: Connection, promises: dict[str, LiteralString]) -> list[tuple[str, int]]:
    """Every contradiction in one snapshot: what is wrong, and the id of the row. One statement, so one snapshot."""
    rules = connection.execute(
        "select rule from guard.rules where rule <> all(%s) order by rule", (list(NOT_JUDGED),)
    ).fetchall()
    judged = [sql.SQL("select v.rule, v.entity_id from guard.{} as v").format(sql.Identifier(r)) for (r,) in rules]
    judged += [
        sql.SQL("select {}::text, v.id from ({}) as v (id)").format(sql.Literal(name), sql.SQL(query))
        for name, query in promises.items()
    ]
    return [(str(what), int(entity)) for what, entity in connection.execute(sql.SQL(" union all ").join(judged))]


@dataclass
class Outcome:
    """What a workload came to. `seen` are the contradictions, each with when it was seen."""

    seen: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    snapshots: int = 0


class Keys:
    """The ids that the application knows: of calls that were committed, and of calls that are gone."""

    def __init__(self, width: int) -> None:
        self._lock = threading.Lock()
        self._next = 1
        self._known: list[int] = []
        self._gone = [0]
        self._width = width

    def new(self, count: int) -> list[int]:
        with self._lock:
            ids = list(range(self._next, self._next + count))
            self._next += count
            return ids

    def committed(self, ids: list[int]) -> None:
        with self._lock:
            self._known = (self._known + ids)[-self._width :]

    def deleted(self, ids: list[int]) -> None:
        with self._lock:
            self._gone = (self._gone + ids)[-self._width :]

    def known(self) -> list[int]:
        with self._lock:
            return list(self._known)

    def gone(self) -> list[int]:
        with self._lock:
            return list(self._gone)


class Writer:
    """One session."""

    def __init__(
        self,
        dsn: str,
        rng: random.Random,
        keys: Keys,
        isolation: str,
        makers: list[Maker],
        outcome: Outcome,
    ) -> None:
        self.rng = rng
        self.isolation = isolation
        self._dsn = dsn
        self._keys = keys
        self._makers = makers
        self._outcome = outcome
        self._made: list[int] = []
        self._deleted: list[int] = []

    def some(self, values: list[T], most: int = 3) -> list[T]:
        """One or more of the values, in any order."""
        return self.rng.sample(values, min(len(values), self.rng.randint(1, most)))

    def calls(self, most: int = 3) -> list[int]:
        return self.some(self._keys.known(), most)

    def call(self) -> int:
        return self.rng.choice(self._keys.known())

    def gone(self) -> int:
        return self.rng.choice(self._keys.gone())

    def new_calls(self) -> list[int]:
        ids = self._keys.new(self.rng.randint(1, 3))
        self._made += ids
        return ids

    def delete(self, ids: list[int]) -> list[int]:
        self._deleted += ids
        return ids

    def work(self, steps: int) -> None:
        with psycopg.connect(self._dsn, autocommit=True, options=OPTIONS) as connection:
            for _ in range(steps):
                self._made, self._deleted = [], []
                try:
                    self._step(connection)
                except psycopg.Error as error:
                    self._count(error)
                    connection.execute("rollback")
                else:
                    self._keys.committed(self._made)
                    self._keys.deleted(self._deleted)

    def _step(self, connection: Connection) -> None:
        connection.execute(f"begin isolation level {self.isolation}")
        for _ in range(self.rng.choice([1, 1, 1, 2, 3, 4])):
            maker = self.rng.choice(self._makers)
            statement, parameters = maker(self)
            if self.rng.random() < 0.3:
                self._in_savepoint(connection, statement, parameters)
            else:
                connection.execute(statement, parameters)
            self._outcome.counts[maker.__name__] += 1
        if self.rng.random() < 0.1:
            self._made, self._deleted = [], []
            connection.execute("rollback")
        else:
            connection.execute("commit")
            self._outcome.counts["committed"] += 1

    def _in_savepoint(self, connection: Connection, statement: str, parameters: dict[str, Any]) -> None:
        made, deleted = list(self._made), list(self._deleted)
        connection.execute("savepoint s")
        try:
            connection.execute(statement, parameters)
        except psycopg.Error as error:
            if error.sqlstate in RETRY:
                raise
            self._count(error)
            undo = True
        else:
            undo = self.rng.random() < 0.3
        if undo:
            connection.execute("rollback to savepoint s")
            self._made, self._deleted = made, deleted

    def _count(self, error: psycopg.Error) -> None:
        state = error.sqlstate or "lost"
        self._outcome.counts[state] += 1
        if state not in RETRY | KNOWN and not state.startswith("ZG1"):
            self._outcome.unexpected.append(f"{state}: {error}")


def run(
    dsn: str,
    *,
    seed: int,
    steps: int,
    promises: dict[str, LiteralString],
    isolation: str = "read committed",
    sessions: int = 6,
    makers: list[Maker] | None = None,
    width: int = 12,
    until_seen: bool = False,
) -> Outcome:
    """Let the sessions write, each `steps` transactions, and the observer read; then look once more at the end.

    `width` is how many calls they meet on. With `until_seen` the sessions end once the observer has seen something.
    """
    outcome = Outcome()
    keys = Keys(width)
    rng = random.Random(seed)  # noqa: S311  # not a secret
    _begin_with(dsn, keys, width)
    writers = [
        Writer(dsn, random.Random(rng.random()), keys, isolation, makers or MAKERS, outcome)  # noqa: S311
        for _ in range(sessions)
    ]
    ended = threading.Event()

    def write(writer: Writer) -> None:
        try:
            for _ in range(steps):
                if until_seen and outcome.seen:
                    break
                writer.work(1)
        except Exception as error:  # a thread's failure is the test's
            outcome.unexpected.append(repr(error))

    def observe() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not ended.wait(0.002):
                found = contradictions(connection, promises)
                outcome.snapshots += 1
                outcome.seen += [f"snapshot {outcome.snapshots}: {what}, {entity}" for what, entity in found]

    observer = threading.Thread(target=observe)
    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in [observer, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    observer.join()
    with psycopg.connect(dsn, autocommit=True) as connection:
        outcome.seen += [f"at the end: {what}, {entity}" for what, entity in contradictions(connection, promises)]
    return outcome


def _begin_with(dsn: str, keys: Keys, width: int) -> None:
    ids = keys.new(width)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into companies (id, name) values (1, 'A'), (2, 'B') on conflict do nothing")
        connection.execute("insert into staff (id, company_id, name) values (1, 1, 'S') on conflict do nothing")
        connection.execute("insert into customers (id, company_id) values (1, 1) on conflict do nothing")
        connection.execute(
            """
            insert into calls (id, company_id, direction, retell_call_id, booking_id)
            select i, 1, 'inbound', 'call_' || i, 'booking_' || i from unnest(%s::bigint[]) as i
            """,
            (ids,),
        )
    keys.committed(ids)


# What an application writes. Each maker returns a statement and its parameters.


def insert_appointments(w: Writer) -> Statement:
    return (
        """
        insert into appointments (company_id, call_id, source, calcom_v2_booking_id, staff_id, starts_at, ends_at)
        select
            case when %(foreign)s then 3 - c.company_id else c.company_id end, c.id, %(source)s,
            case when %(booked)s then 'booking_' || c.id end, 1,
            timestamp '2030-01-01' + %(slot)s * interval '1 hour',
            timestamp '2030-01-01' + (%(slot)s + 1) * interval '1 hour'
        from calls as c
        where c.id = any(%(calls)s)
        """,
        {
            "calls": w.calls(),
            "source": w.rng.choice(["retell_webhook", "app"]),
            "foreign": w.rng.random() < 0.05,
            "booked": w.rng.random() < 0.3,
            "slot": w.rng.randint(1, 10_000),
        },
    )


def insert_one_appointment(w: Writer) -> Statement:
    return (
        """
        insert into appointments (company_id, call_id)
        select c.company_id, c.id from calls as c where c.id = %(call)s
        """,
        {"call": w.call()},
    )


def insert_for_a_call_that_is_gone(w: Writer) -> Statement:
    return (
        "insert into appointments (company_id, call_id, source) values (1, %(gone)s, %(source)s)",
        {"gone": w.gone(), "source": w.rng.choice(["retell_webhook", "app"])},
    )


def insert_orphan(w: Writer) -> Statement:
    return (
        """
        insert into appointments (company_id, source, calcom_v2_booking_id) values (1, 'retell_webhook', %(booking)s)
        """,
        {"booking": f"booking_{w.call()}"},
    )


def upsert_appointment(w: Writer) -> Statement:
    return (
        """
        insert into appointments (company_id, call_id, calcom_v2_booking_id)
        select c.company_id, c.id, %(booking)s from calls as c where c.id = %(call)s
        on conflict (calcom_v2_booking_id) where calcom_v2_booking_id is not null
        do update set call_id = excluded.call_id, company_id = excluded.company_id
        """,
        {"booking": f"booking_{w.call()}", "call": w.call()},
    )


def merge_appointments(w: Writer) -> Statement:
    return (
        """
        merge into appointments as a
        using (select c.id, c.company_id from calls as c where c.id = any(%(calls)s)) as s on a.call_id = s.id
        when matched and a.id %% 2 = 0 then delete
        when matched then update set status = 'rescheduled'
        when not matched then insert (company_id, call_id) values (s.company_id, s.id)
        """,
        {"calls": w.calls()},
    )


def delete_appointments(w: Writer) -> Statement:
    return "delete from appointments where call_id = any(%(calls)s)", {"calls": w.calls()}


def delete_any_appointment(w: Writer) -> Statement:
    return "delete from appointments where id in (select id from appointments order by random() limit 1)", {}


def move_appointments(w: Writer) -> Statement:
    return (
        """
        update appointments as a set call_id = c.id
        from calls as c
        where c.id = %(to)s and c.company_id = a.company_id and a.call_id = any(%(from)s)
        """,
        {"from": w.calls(), "to": w.call()},
    )


def swap_appointments(w: Writer) -> Statement:
    one, other = w.call(), w.call()
    return (
        """
        update appointments set call_id = %(one)s + %(other)s - call_id
        where call_id in (%(one)s, %(other)s) and exists (select from calls where id = %(one)s)
            and exists (select from calls where id = %(other)s)
        """,
        {"one": one, "other": other},
    )


def unlink_appointments(w: Writer) -> Statement:
    return "update appointments set call_id = null where call_id = any(%(calls)s)", {"calls": w.calls()}


def touch_appointments(w: Writer) -> Statement:
    return (
        "update appointments set status = %(status)s, source = %(source)s where call_id = any(%(calls)s)",
        {
            "status": w.rng.choice(["booked", "cancelled"]),
            "source": w.rng.choice(["retell_webhook", "app"]),
            "calls": w.calls(),
        },
    )


def insert_calls(w: Writer) -> Statement:
    return (
        """
        insert into calls (id, company_id, direction, retell_call_id, booking_id, appointment_link_status)
        select i, 1, %(direction)s, 'call_' || i, 'booking_' || i, %(link)s from unnest(%(calls)s::bigint[]) as i
        """,
        {
            "calls": w.new_calls(),
            "direction": w.rng.choice(["inbound", None]),
            "link": w.rng.choice([None, "linked", "pending"]),
        },
    )


def upsert_call(w: Writer) -> Statement:
    ids = w.new_calls()
    return (
        """
        insert into calls (id, company_id, direction, retell_call_id, booking_id, session_outcome, appointment_made)
        values (%(new)s, 1, 'inbound', %(retell)s, %(booking)s, %(outcome)s, %(made)s)
        on conflict (retell_call_id) do update
        set session_outcome = excluded.session_outcome, appointment_made = excluded.appointment_made
        """,
        {
            "new": ids[0],
            "booking": f"booking_{ids[0]}",
            "retell": f"call_{w.rng.choice([ids[0], w.call()])}",
            "outcome": w.rng.choice([None, "abandoned", "appointment_booked"]),
            "made": w.rng.choice([True, False]),
        },
    )


def write_flags(w: Writer) -> Statement:
    """Any of the flags, to any value, whether or not they agree."""
    values: dict[str, list[Any]] = {
        "appointment_made": [True, False, False],
        "session_outcome": ["appointment_booked", "abandoned", None],
        "appointment_link_status": ["linked", "unlinked", "creation_failed", None],
        "direction": ["outbound", None],
        "customer_id": [1, None],
        "customer_link_method": ["manual", None],
    }
    chosen = {name: w.rng.choice(values[name]) for name in w.some(list(values))}
    assignments = ", ".join(f"{name} = %({name})s" for name in chosen)
    return f"update calls set {assignments} where id = any(%(calls)s)", {**chosen, "calls": w.calls()}


def change_company(w: Writer) -> Statement:
    return "update calls set company_id = 3 - company_id where id = %(call)s", {"call": w.call()}


def change_booking(w: Writer) -> Statement:
    return (
        "update calls set booking_id = %(booking)s where id = %(call)s",
        {"booking": f"booking_{w.call()}", "call": w.call()},
    )


def delete_calls(w: Writer) -> Statement:
    return "delete from calls where id = any(%(calls)s)", {"calls": w.delete(w.calls(1))}


def delete_calls_with_appointments(w: Writer) -> Statement:
    return (
        """
        with freed as (delete from appointments where call_id = any(%(calls)s))
        delete from calls where id = any(%(calls)s)
        """,
        {"calls": w.delete(w.calls(2))},
    )


def book_and_say_so(w: Writer) -> Statement:
    """One statement writes both tables, as an application does that trusts nobody."""
    return (
        """
        with booked as (
            insert into appointments (company_id, call_id)
            select c.company_id, c.id from calls as c where c.id = any(%(calls)s)
            returning call_id
        )
        update calls as c
        set appointment_made = true, session_outcome = 'appointment_booked', appointment_link_status = 'linked'
        from booked as b
        where c.id = b.call_id
        """,
        {"calls": w.calls()},
    )


def cancel_and_say_so(w: Writer) -> Statement:
    return (
        """
        with cancelled as (delete from appointments where call_id = any(%(calls)s) returning call_id)
        update calls as c
        set appointment_made = false, session_outcome = 'abandoned', appointment_link_status = 'unlinked'
        from cancelled as x
        where c.id = x.call_id
        """,
        {"calls": w.calls()},
    )


def truncate_rarely(w: Writer) -> Statement:
    # a transaction whose snapshot is older than the lock that TRUNCATE takes does not see what it removes
    if w.isolation == "read committed" and w.rng.random() < 0.05:
        return "truncate appointments", {}
    return delete_any_appointment(w)


MAKERS: list[Maker] = [
    insert_appointments,
    insert_appointments,
    insert_one_appointment,
    insert_for_a_call_that_is_gone,
    insert_orphan,
    upsert_appointment,
    merge_appointments,
    delete_appointments,
    delete_any_appointment,
    move_appointments,
    swap_appointments,
    unlink_appointments,
    touch_appointments,
    insert_calls,
    upsert_call,
    write_flags,
    write_flags,
    change_company,
    change_booking,
    delete_calls,
    delete_calls_with_appointments,
    book_and_say_so,
    cancel_and_say_so,
    truncate_rarely,
]

#: Only what adds to and takes from a few calls: what the synchronisation is made of.
ADD_AND_REMOVE: list[Maker] = [insert_one_appointment, delete_any_appointment, delete_any_appointment]
