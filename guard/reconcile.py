"""Reconciliation and its undoing. The database repairs a batch a call; here is the loop, a transaction for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from guard.database import Connection
from guard.errors import GuardError

#: Rows a transaction, and the pause after it, in seconds: writers come in between.
BATCH = 1000
PAUSE = 0.05


@dataclass
class Tally:
    """What became of the violations of one rule; `mode` is where the rule stands, `error` why it cannot be asked.

    What a person called false is left alone: it is examined, and does not count as standing.
    """

    rule: str
    mode: str
    standing: int = 0
    examined: int = 0
    repaired: int = 0
    queued: int = 0
    called_false: int = 0
    error: str | None = None

    @property
    def note(self) -> str | None:
        if self.error:
            return f"failed: {self.error}"
        return f"{self.called_false} called false, left alone" if self.called_false else None


def survey(connection: Connection, rule: str | None) -> list[Tally]:
    """The rules that reconciliation goes through, in its order, and how much breaks each now.

    A rule whose view fails keeps no other from being counted.
    Raises GuardError for a rule that there is not, that is off, or that reports facts.
    """
    rows = connection.execute(
        """
        select r.rule, r.mode
        from guard.rules as r
        where r.mode <> 'off' and r.severity <> 'info' and r.rule = coalesce(%s, r.rule)
        order by r.rule = 'missing_appointment', r.rule
        """,
        (rule,),
    ).fetchall()
    if rule is not None and not rows:
        raise GuardError(
            f"There is nothing to reconcile for {rule}.",
            fix="guard rules list shows the rules; one that is off, or reports facts, is not gone through.",
        )
    tallies = [Tally(name, mode) for name, mode in rows]
    for tally in tallies:
        try:
            with connection.transaction():
                tally.standing = _standing(connection, tally.rule)
        except psycopg.OperationalError:
            raise
        except psycopg.DatabaseError as error:
            tally.error = f"{error.sqlstate}: {error.diag.message_primary}"
    connection.commit()
    return tallies


def _standing(connection: Connection, rule: str) -> int:
    count = connection.execute(
        sql.SQL(
            """
            select count(*)
            from {} as v
            left join guard.incidents as i
                on
                    i.fingerprint = concat_ws(':', v.rule, v.entity_type, v.entity_id)
                    and i.is_false
                    and i.occurred_at is not distinct from v.occurred_at
            where i.id is null
            """
        ).format(sql.Identifier("guard", rule))
    ).fetchone()
    return int(count[0]) if count else 0


def reconcile(
    connection: Connection,
    tallies: list[Tally],
    *,
    dry_run: bool,
    batch: int = BATCH,
    pause: float = PAUSE,
    on_progress: Callable[[Tally, int], None] = lambda _tally, _examined: None,
) -> None:
    """Go through the violations of each rule, and count in `tallies` what was done, or would be.

    Interrupted at any point it loses nothing: what is repaired is committed, and the next run finds the rest. A rule
    whose view fails is left out, and its tally says why.
    Raises GuardError if another session is reconciling.
    """
    for tally in tallies:
        after, is_last = 0, False
        while not is_last:
            row = connection.execute(
                """
                select examined, repaired, queued, called_false, last_id, is_last, error
                from guard.reconcile(%s, %s, %s, %s)
                """,
                (dry_run, tally.rule, batch, after),
            ).fetchone()
            connection.commit()
            if row is None:
                raise GuardError("Another session is reconciling.", fix="Wait until it is done; nothing was lost.")
            examined, repaired, queued, called_false, after, is_last, error = row
            tally.examined += examined
            tally.repaired += repaired
            tally.queued += queued
            tally.called_false += called_false
            tally.error = error or tally.error
            on_progress(tally, examined)
            if not is_last:
                time.sleep(pause)


def undo(connection: Connection, since: datetime, *, batch: int = BATCH) -> dict[str, tuple[int, int]]:
    """Put back what repairs changed since a moment; returns for each rule the values restored, and those skipped."""
    undone: dict[str, tuple[int, int]] = {}
    while rows := connection.execute("select * from guard.undo(%s, %s)", (since, batch)).fetchall():
        connection.commit()
        for rule, restored, skipped in rows:
            before = undone.get(rule, (0, 0))
            undone[rule] = (before[0] + restored, before[1] + skipped)
    return undone
