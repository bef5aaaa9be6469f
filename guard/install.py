"""Apply and roll back: migrations first, then the ledger's files, then the constraints of tables that guard made.

Every step is one transaction (a concurrent index build is one statement) and can be repeated: a process that is killed
anywhere is followed by another that ends in the same catalog.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from psycopg import sql
from yoyo.migrations import Migration

from guard import adoption, constraints, cron, database, dependents, ledger, locks, migrations
from guard.database import Connection
from guard.errors import BusyError, GuardError, named
from guard.locks import retry_on_lock_timeout

#: The key of the session advisory lock that every command which changes the catalog holds ("guard" in ASCII).
ADVISORY_KEY = 0x6775617264

#: Called before each step with its name, how many are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass
class Session:
    """The connections of a command that changes the catalog: one that works, one that watches who blocks it."""

    dsn: str
    worker: Connection
    observer: Connection

    def step(self, what: str, action: Callable[[], None]) -> None:
        """Run `action` in one transaction of the worker, again and again until it gets its locks."""

        def attempt() -> None:
            with self.worker.transaction():
                action()

        with named(what):
            retry_on_lock_timeout(attempt, what=what, worker=self.worker, observer=self.observer)


@contextmanager
def exclusive(dsn: str) -> Iterator[Session]:
    """Hold guard's advisory lock for as long as the block runs. Raises BusyError if another command holds it.

    The session of a command that has just ended may take a moment to go; it is waited for.
    """
    with database.connect(dsn) as observer, database.connect(dsn) as worker:
        deadline = time.monotonic() + 2
        while observer.execute("select pg_try_advisory_lock(%s)", (ADVISORY_KEY,)).fetchone() != (True,):
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            holder = observer.execute(
                """
                select a.pid, a.usename
                from pg_catalog.pg_locks as l
                inner join pg_catalog.pg_stat_activity as a on l.pid = a.pid
                where l.locktype = 'advisory' and l.granted
                    and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
                    and (l.classid::bigint << 32) | l.objid::bigint = %s
                """,
                (ADVISORY_KEY,),
            ).fetchone()
            who = f" (pid {holder[0]}, user {holder[1]})" if holder else ""
            raise BusyError(f"Another guard command is changing this database{who}.")
        database.prepare_for_ddl(worker)
        yield Session(dsn, worker, observer)


def apply(
    session: Session,
    progress: Progress,
    *,
    own_rules: Path | None = None,
    app_timezone: str | None = None,
    prune: bool = False,
) -> list[str]:
    """Bring the database to the state that the files describe. Returns what was done, a line each.

    Raises UnsuitableDatabaseError before the first change, LockTimeoutError where a lock was not to be had.
    """
    files = ledger.read_files(own_rules)
    adoption.check(session.worker, files, app_timezone)
    if not migrations.is_installed(session.worker):
        session.worker.execute(migrations.CREATE_SCHEMA.encode())
    done: list[str] = []
    yoyo = migrations.Migrations(session.dsn, session.observer)
    try:
        repairs = yoyo.unfinished_indexes()
        todo = yoyo.pending()
        for position, migration in enumerate([*repairs, *todo]):
            progress(f"migration {migration.id}", position, len(repairs) + len(todo) + len(files))
            yoyo.apply(migration)
            done.append(f"{'repaired' if migration in repairs else 'applied'} migration {migration.id}")
        applied = yoyo.applied()
    finally:
        yoyo.close()

    run = _Run(session.worker, applied[0].id, bool(todo))
    difference = ledger.compare(session.worker, files)
    again = difference.to_apply
    for position, file in enumerate(again):
        progress(file.path, len(todo) + position, len(todo) + len(again))
        session.step(file.path, lambda file=file: ledger.apply_file(session.worker, file, run.id))  # type: ignore[misc]
        done.append(f"{'applied' if file in difference.pending else 'restored'} {file.path}")
    done += _drop(session, ledger.compare(session.worker, files).obsolete)
    if prune:
        done += _prune(session, difference.orphaned, run)
    for migration in applied:
        session.worker.execute(
            """
            insert into guard.objects (kind, identity, path, checksum)
            values ('migration', %s, %s, %s)
            on conflict do nothing
            """,
            (migration.id, f"migrations/{migration.id}.sql", migrations.checksum(migration)),
        )
    if any(migration.id == ledger.ON_TABLES_SINCE for migration in applied):
        _record_indexes(session.worker, applied, {migration.id for migration in (*repairs, *todo)})
    if app_timezone is not None and app_timezone != _setting(session.worker, "app_timezone"):
        session.worker.execute("select guard.set_setting('app_timezone', %s)", (app_timezone,))
        done.append(f"set app_timezone to {app_timezone}")
    done += constraints.install_on_own_tables(session.worker, session.observer)
    done += cron.sync(session.worker)
    run.finish()
    return done


def _record_indexes(connection: Connection, applied: list[Migration], built: set[str]) -> None:
    """Fingerprints of the indexes that were built just now, and of those that the ledger does not know yet."""
    recorded = ledger.on_tables(connection)
    for migration in applied:
        indexes = [ledger.SqlObject("index", f"public.{name}") for name in migrations.index_names(migration)]
        if indexes and (migration.id in built or not recorded.keys() >= set(indexes)):
            ledger.record(connection, f"migrations/{migration.id}.sql", migrations.checksum(migration), indexes)


def _setting(connection: Connection, name: str) -> str | None:
    row = connection.execute("select guard.setting(%s)", (name,)).fetchone()
    return row[0] if row else None


class _Run:
    """The row of guard.apply_runs, written when there is something to record; one that was cut short is resumed."""

    def __init__(self, connection: Connection, last_migration: str, migrated: bool) -> None:
        self._connection = connection
        self._last_migration = last_migration
        row = connection.execute(
            """
            update guard.apply_runs
            set last_migration = %s
            where id = (select max(r.id) from guard.apply_runs as r)
                and finished_at is null and undone_at is null
            returning id
            """,
            (last_migration,),
        ).fetchone()
        self._id: int | None = row[0] if row else None
        if migrated and self._id is None:
            self._start()

    @property
    def id(self) -> int:
        return self._id or self._start()

    def _start(self) -> int:
        row = self._connection.execute(
            "insert into guard.apply_runs (version, last_migration) values (%s, %s) returning id",
            (version("booking-guard"), self._last_migration),
        ).fetchone()
        assert row is not None  # noqa: S101  # INSERT ... RETURNING
        self._id = int(row[0])
        return self._id

    def finish(self) -> None:
        if self._id is not None:
            self._connection.execute(
                "update guard.apply_runs set finished_at = clock_timestamp() where id = %s", (self._id,)
            )


def _prune(session: Session, orphaned: list[ledger.SqlObject], run: _Run) -> list[str]:
    """Drop what no file provides, and log that its files are gone, so that a rollback brings them back."""
    known = ledger.entries(session.worker)
    for path, checksum in sorted({(known[obj].path, known[obj].checksum) for obj in orphaned}):
        ledger.log(session.worker, run.id, path, checksum, None)
    return _drop(session, orphaned)


def _drop(session: Session, objects: list[ledger.SqlObject], save: Callable[[], None] | None = None) -> list[str]:
    """Drop objects in as few steps as their locks allow. Returns what was done, a line each.

    `save` is called when nobody new gets into what is dropped, and before rows of guard's go.
    """
    triggers = [obj for obj in objects if obj.kind == "trigger"]
    rows = [obj for obj in objects if obj.kind in ("rule", "job")]
    code = [obj for obj in objects if obj not in triggers and obj not in rows]
    # where the function is gone, an earlier attempt got beyond this
    if _exists(session.worker, "to_regprocedure('guard.constraint_statements(text, boolean)')"):
        for rule in (obj.identity for obj in rows if obj.kind == "rule"):
            constraints.remove(session.worker, session.observer, rule)
    for table in sorted({obj.identity.split(" ")[0] for obj in triggers}):
        of_table = [obj for obj in triggers if obj.identity.startswith(f"{table} ")]
        session.step(f"triggers of {table}", lambda of=of_table: ledger.drop(session.worker, of))  # type: ignore[misc]
    if save is not None:
        if code:
            session.step("functions and views", lambda: ledger.drop(session.worker, code))
        locks.wait_for_writers(session.observer, "rollback")
        save()
    left = [*code, *rows] if save is None else rows
    if left:
        session.step("functions, views and rules", lambda: ledger.drop(session.worker, left))
    return [f"dropped {obj}" for obj in [*triggers, *code, *rows]]


def _exists(connection: Connection, expression: str) -> bool:
    return connection.execute(f"select {expression}".encode()).fetchone() != (None,)


def rollback(
    session: Session,
    progress: Progress,
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
        done += _drop(session, dropped, save if undone else None)
        for position, migration in enumerate(undone):
            progress(f"migration {migration.id}", position, len(undone))
            yoyo.rollback(migration)
            done += [f"rolled back migration {migration.id}", *yoyo.warnings]
            yoyo.warnings.clear()
            if _exists(worker, "to_regclass('guard.objects')"):
                worker.execute("delete from guard.objects where path = %s", (f"migrations/{migration.id}.sql",))
    finally:
        yoyo.close()
    done += cron.sync(worker)
    if everything:
        session.step("schema guard", lambda: migrations.drop_schema(worker))
        done.append("dropped schema guard")
    elif _exists(worker, "to_regclass('guard.apply_runs')"):
        worker.execute(
            "update guard.apply_runs set undone_at = clock_timestamp() where undone_at is null and id > %s",
            (target_run or 0,),
        )
    return done


def _target(connection: Connection, to: str | None) -> tuple[int | None, str | None]:
    """The run whose objects are wanted (None: no objects), and the last migration to keep (None: none)."""
    if not _exists(connection, "to_regclass('guard.apply_runs')"):
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


def _restore(session: Session, progress: Progress, wanted: list[ledger.SqlFile]) -> list[str]:
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
