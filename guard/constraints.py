"""The table constraints of rules: installed where a rule's audit counts zero, each statement in its own transaction."""

from __future__ import annotations

from contextlib import nullcontext

from psycopg import errors, sql

from guard import ledger
from guard.database import LOCK_TIMEOUT_MS, Connection
from guard.errors import GuardError
from guard.ledger import SqlObject
from guard.locks import CONCURRENT_TIMEOUT_MS, retry_on_lock_timeout


def violations(connection: Connection, rule: str) -> int:
    """How many rows of the whole database break the rule now."""
    query = sql.SQL("select count(*) from guard.{}").format(sql.Identifier(rule))
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def state(connection: Connection, rule: str) -> str | None:
    """absent, invalid, unvalidated or in force; None if the rule has no constraint."""
    row = connection.execute("select guard.constraint_state(%s)", (rule,)).fetchone()
    return row[0] if row else None


def drifted(connection: Connection) -> dict[str, SqlObject]:
    """The constraints of rules that are not as guard made them, or not of its making."""
    recorded = ledger.on_tables(connection)
    objects = _objects(connection)
    found = ledger.fingerprints(connection, objects.values())
    return {
        rule: obj
        for rule, obj in objects.items()
        if found[obj] is not None and (obj not in recorded or recorded[obj].fingerprint != found[obj])
    }


def lost(connection: Connection) -> dict[str, SqlObject]:
    """The constraints that a mode wants and that are gone: guard made them, or would on a table of its own."""
    recorded = ledger.on_tables(connection)
    due = due_on_own_tables(connection)
    return {
        rule: obj
        for rule, obj in _objects(connection, wanted=True).items()
        if (rule in due or obj in recorded) and state(connection, rule) == "absent"
    }


def _objects(connection: Connection, *, wanted: bool = False) -> dict[str, SqlObject]:
    """The constraint of each rule that has one, as the ledger names it; of those alone whose mode wants it."""
    rows = connection.execute(
        """
        select r.rule, o.kind, o.identity
        from guard.rules as r
        cross join lateral guard.constraint_object(r.rule) as o
        where not %s or guard.constraint_wanted(r.rule)
        order by r.rule
        """,
        (wanted,),
    ).fetchall()
    return {rule: SqlObject(kind, identity) for rule, kind, identity in rows}


def install(worker: Connection, observer: Connection, rule: str) -> int:
    """Bring the rule's constraint in force. Returns how many rows stand in the way: if any, it is not there at all.

    A constraint that is not valid may refuse what the mode lets through, so a failed attempt leaves none.
    """
    for _ in range(3):
        in_the_way = violations(worker, rule)
        if in_the_way or rule in drifted(worker):
            remove(worker, observer, rule)
        if in_the_way:
            return in_the_way
        try:
            _run(worker, observer, rule, wanted=True)
        except (errors.CheckViolation, errors.UniqueViolation, errors.ExclusionViolation):
            remove(worker, observer, rule)  # a row was written meanwhile: count again
        else:
            return 0
    raise GuardError(
        f"The constraint of {rule} refuses rows that guard.{rule} does not show.",
        fix="Make the rule's view and its constraint say the same.",
    )


def remove(worker: Connection, observer: Connection, rule: str) -> None:
    """Remove the rule's constraint, if it is there."""
    _run(worker, observer, rule, wanted=False)
    worker.execute("select guard.record_constraint(%s, null)", (rule,))


def install_on_own_tables(worker: Connection, observer: Connection) -> list[str]:
    """Tables that guard made start with their constraints in force. Returns what was done, a line each."""
    done = []
    for rule in due_on_own_tables(worker):
        if in_the_way := install(worker, observer, rule):
            done.append(f"left out the constraint guard_{rule}: {in_the_way} rows stand in the way, see guard.{rule}")
        else:
            done.append(f"put the constraint guard_{rule} in force")
    return done


def due_on_own_tables(connection: Connection) -> list[str]:
    """The rules whose mode wants a constraint, on a table that guard made, that is not in force as guard makes it."""
    if connection.execute("select to_regprocedure('guard.constraint_object(text)')").fetchone() == (None,):
        return []
    rows = connection.execute(
        """
        select r.rule
        from guard.rules as r
        inner join guard.provenance as p on p.kind = 'table' and p.relation = 'public.' || r.entity_type || 's'
        where guard.constraint_wanted(r.rule) and (guard.constraint_state(r.rule) <> 'in force' or r.rule = any(%s))
        order by r.rule
        """,
        (list(drifted(connection)),),
    ).fetchall()
    return [row[0] for row in rows]


def statements(connection: Connection, rule: str, *, wanted: bool) -> list[str]:
    """What is still to be run, in order, to bring the rule's constraint in force or to remove it."""
    query = "select statement from guard.constraint_statements(%s, %s) order by step"
    return [row[0] for row in connection.execute(query, (rule, wanted)).fetchall()]


def _run(worker: Connection, observer: Connection, rule: str, *, wanted: bool) -> None:
    """Each statement, and after it what the ledger says: in one transaction, but for concurrent ones."""
    for statement in statements(worker, rule, wanted=wanted):
        concurrently = " concurrently " in statement
        worker.execute(f"set lock_timeout = {CONCURRENT_TIMEOUT_MS if concurrently else LOCK_TIMEOUT_MS}")
        try:
            retry_on_lock_timeout(
                lambda statement=statement, concurrently=concurrently: _execute(worker, rule, statement, concurrently),  # type: ignore[misc]
                what=f"constraint guard_{rule}",
                worker=worker,
                observer=observer,
            )
        finally:
            worker.execute(f"set lock_timeout = {LOCK_TIMEOUT_MS}")


def _execute(worker: Connection, rule: str, statement: str, concurrently: bool) -> None:
    with nullcontext() if concurrently else worker.transaction():
        worker.execute(statement.encode())
        obj = _objects(worker)[rule]
        worker.execute("select guard.record_constraint(%s, %s)", (rule, ledger.fingerprints(worker, [obj])[obj]))
