"""Roll back: the ledger's files get the texts that they had, guard's rows are saved, then migrations are undone.

Like apply, a process that is killed anywhere is followed by another that ends in the same catalog.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from psycopg import sql

from guard import cron, database, dependents, install, ledger, locks, migrations
from guard.database import Connection
from guard.errors import GuardError


def run(
    session: install.Session,
    progress: install.Progress,
    *,
    to: str | None = None,
    everything: bool = False,
    save: Callable[[], None] = lambda: None,
) -> list[str]:
    """Undo the last apply, or all applies down to migration `to`, or everything. Returns what was done, a line each.

    With `everything` the schema is as it was before guard: only what guard added is removed, and corrections stay.
    `save` is called before rows of guard's own go, and when what is undone writes no more: then no value is lost that
    was corrected meanwhile. Raises GuardError before the first change for an unknown migration, where there is nothing
    to undo, and where objects of others depend on what would go.
    """

    def save_all() -> None:
        locks.wait_for_writers(session.observer, "rollback")
        save()

    worker = session.worker
    if not migrations.is_installed(worker):
        raise GuardError("Guard is not installed in this database.", fix="There is nothing to roll back.")
    done: list[str] = []
    yoyo = migrations.Migrations(session.dsn, session.observer)
    try:
        applied = yoyo.applied()
        ids = [migration.id for migration in applied]
        if to is not None and to not in ids:
            raise GuardError(f"Migration {to} is not applied here.", fix=f"Applied are: {', '.join(reversed(ids))}.")
        target_run, target_migration = (None, None) if everything else _target(worker, to)
        undone = [m for m in [*yoyo.cut_short(), *applied] if target_migration is None or m.id > target_migration]
        wanted = [] if target_run is None else ledger.texts_as_of(worker, target_run)
        kept = {obj for file in wanted for obj in file.provides}
        dropped = [obj for obj in ledger.entries(worker) if obj not in kept]
        dependents.check(worker, dropped, kept, undone, everything=everything)
        done += _restore(session, progress, wanted)
        done += install.drop(session, dropped, save_all if undone else None)
        for position, migration in enumerate(undone):
            progress(f"migration {migration.id}", position, len(undone))
            yoyo.rollback(migration)
            done += [f"rolled back migration {migration.id}", *yoyo.warnings]
            yoyo.warnings.clear()
            if database.has_relation(worker, "guard.objects"):
                worker.execute("delete from guard.objects where path = %s", (f"migrations/{migration.id}.sql",))
    finally:
        yoyo.close()
    done += cron.sync(worker)
    if everything:
        session.step("schema guard", lambda: migrations.drop_schema(worker))
        done.append("dropped schema guard")
    elif database.has_relation(worker, "guard.apply_runs"):
        worker.execute(
            "update guard.apply_runs set undone_at = clock_timestamp() where undone_at is null and id > %s",
            (target_run or 0,),
        )
    return done


def _target(connection: Connection, to: str | None) -> tuple[int | None, str | None]:
    """The run whose objects are wanted (None: no objects), and the last migration to keep (None: none)."""
    if not database.has_relation(connection, "guard.apply_runs"):
        return None, to
    runs = connection.execute(
        "select id, last_migration from guard.apply_runs where undone_at is null order by id desc"
    ).fetchall()
    if to is not None:
        return next((run for run, last in runs if last <= to), None), to
    if not runs:
        raise GuardError("Every apply has been undone already.", fix="To remove guard, run guard rollback --all.")
    if len(runs) == 1:
        raise GuardError(
            "There is only one apply to undo: that would remove guard.",
            fix="To remove guard, run guard rollback --all.",
        )
    return runs[1][0], runs[1][1]


def _restore(session: install.Session, progress: install.Progress, wanted: list[ledger.SqlFile]) -> list[str]:
    """Bring the objects of these files to their texts. Returns what was done, a line each."""
    now = ledger.entries(session.worker)
    restored = [f for f in wanted if any(o not in now or now[o].checksum != f.checksum for o in f.provides)]
    for position, file in enumerate(restored):
        progress(file.path, position, len(restored))
        session.step(file.path, lambda file=file: ledger.restore_file(session.worker, file))  # type: ignore[misc]
    return [f"restored {file.path}" for file in restored]


class Export(NamedTuple):
    """A file of guard's rows, and whether the values before corrections were still there to be saved."""

    path: Path
    has_alerts: bool


def export(connection: Connection, folder: Path) -> Export:
    """Write every row of guard's own tables to a new file of JSON lines, readable by its owner alone.

    Each line is {"table": name, "row": {...}}.
    """
    tables = connection.execute(
        """
        select c.relname
        from pg_catalog.pg_class as c
        where c.relnamespace = to_regnamespace('guard') and c.relkind in ('r', 'p') and not c.relispartition
            and c.relname !~ '^_?yoyo'
        order by c.relname
        """
    ).fetchall()
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"guard-export-{re.sub('[^0-9A-Za-z_-]', '_', connection.info.dbname)}-{moment}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with (
        os.fdopen(descriptor, "w", encoding="utf-8") as file,
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        cursor.execute("set transaction isolation level repeatable read read only")
        for (table,) in tables:
            for (row,) in cursor.stream(sql.SQL("select to_jsonb(t) from guard.{} as t").format(sql.Identifier(table))):
                file.write(json.dumps({"table": table, "row": row}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Export(path, ("data_consistency_alerts",) in tables)
