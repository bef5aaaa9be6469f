"""The table constraints of rules: installed where a rule's audit counts zero, each statement in its own transaction."""

from __future__ import annotations

from psycopg import sql

from guard.database import LOCK_TIMEOUT_MS, Connection
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


def install(worker: Connection, observer: Connection, rule: str) -> None:
    """Bring the rule's constraint in force. The caller has seen that no row stands in the way.

    A row that breaks the rule meanwhile makes the statement fail, and leaves what the next attempt resumes from.
    """
    _run(worker, observer, rule, wanted=True)


def remove(worker: Connection, observer: Connection, rule: str) -> None:
    """Remove the rule's constraint, if it is there."""
    _run(worker, observer, rule, wanted=False)


def install_on_own_tables(worker: Connection, observer: Connection) -> list[str]:
    """Tables that guard made start with their constraints in force. Returns what was done, a line each."""
    rules = worker.execute(
        """
        select r.rule
        from guard.rules as r
        inner join guard.provenance as p on p.kind = 'table' and p.relation = 'public.' || r.entity_type || 's'
        where (r.mode = 'enforce' or (r.mode = 'correct' and r.rollout_pct = 100))
            and guard.constraint_state(r.rule) <> 'in force'
        order by r.rule
        """
    ).fetchall()
    done = []
    for (rule,) in rules:
        if violations(worker, rule) == 0:
            install(worker, observer, rule)
            done.append(f"put the constraint guard_{rule} in force")
    return done


def _run(worker: Connection, observer: Connection, rule: str, *, wanted: bool) -> None:
    rows = worker.execute(
        "select statement from guard.constraint_statements(%s, %s) order by step", (rule, wanted)
    ).fetchall()
    for (statement,) in rows:
        timeout = CONCURRENT_TIMEOUT_MS if " concurrently " in statement else LOCK_TIMEOUT_MS
        worker.execute(f"set lock_timeout = {timeout}")
        retry_on_lock_timeout(
            lambda statement=statement: worker.execute(statement.encode()),  # type: ignore[misc]
            what=f"constraint guard_{rule}",
            worker=worker,
            observer=observer,
        )
