"""The table constraints of rules: installed where a rule's audit counts zero, each statement in its own transaction."""

from __future__ import annotations

from psycopg import errors, sql

from guard.database import LOCK_TIMEOUT_MS, Connection
from guard.errors import GuardError
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


def install(worker: Connection, observer: Connection, rule: str) -> int:
    """Bring the rule's constraint in force. Returns how many rows stand in the way: if any, it is not there at all.

    A constraint that is not valid may refuse what the mode lets through, so a failed attempt leaves none.
    """
    for _ in range(3):
        if in_the_way := violations(worker, rule):
            remove(worker, observer, rule)
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


def install_on_own_tables(worker: Connection, observer: Connection) -> list[str]:
    """Tables that guard made start with their constraints in force. Returns what was done, a line each."""
    rules = due_on_own_tables(worker)
    return [f"put the constraint guard_{rule} in force" for rule in rules if install(worker, observer, rule) == 0]


def due_on_own_tables(connection: Connection) -> list[str]:
    """The rules whose mode wants a constraint, on a table that guard made, that is not in force."""
    if connection.execute("select to_regprocedure('guard.constraint_state(text)')").fetchone() == (None,):
        return []
    rows = connection.execute(
        """
        select r.rule
        from guard.rules as r
        inner join guard.provenance as p on p.kind = 'table' and p.relation = 'public.' || r.entity_type || 's'
        where (r.mode = 'enforce' or (r.mode = 'correct' and r.rollout_pct = 100))
            and guard.constraint_state(r.rule) <> 'in force'
        order by r.rule
        """
    ).fetchall()
    return [row[0] for row in rows]


def statements(connection: Connection, rule: str, *, wanted: bool) -> list[str]:
    """What is still to be run, in order, to bring the rule's constraint in force or to remove it."""
    query = "select statement from guard.constraint_statements(%s, %s) order by step"
    return [row[0] for row in connection.execute(query, (rule, wanted)).fetchall()]


def _run(worker: Connection, observer: Connection, rule: str, *, wanted: bool) -> None:
    for statement in statements(worker, rule, wanted=wanted):
        timeout = CONCURRENT_TIMEOUT_MS if " concurrently " in statement else LOCK_TIMEOUT_MS
        worker.execute(f"set lock_timeout = {timeout}")
        try:
            retry_on_lock_timeout(
                lambda statement=statement: worker.execute(statement.encode()),  # type: ignore[misc]
                what=f"constraint guard_{rule}",
                worker=worker,
                observer=observer,
            )
        finally:
            worker.execute(f"set lock_timeout = {LOCK_TIMEOUT_MS}")
