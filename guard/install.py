"""Apply: migrations first, then the ledger's files, then the constraints of tables that guard made.

Every step is one transaction (a concurrent index build is one statement) and can be repeated: a process that is killed
anywhere is followed by another that ends in the same catalog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from yoyo.migrations import Migration

from guard import adoption, constraints, cron, database, ledger, migrations
from guard.database import Connection
from guard.errors import BusyError, named
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
    done += drop(session, ledger.compare(session.worker, files).obsolete)
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
    return drop(session, orphaned)


def drop(session: Session, objects: list[ledger.SqlObject], before_rows: Callable[[], None] | None = None) -> list[str]:
    """Drop objects in as few steps as their locks allow. Returns what was done, a line each.

    `before_rows` is called when nobody new gets into what is dropped, and before rows of guard's go.
    """
    triggers = [obj for obj in objects if obj.kind == "trigger"]
    rows = [obj for obj in objects if obj.kind in ("rule", "job")]
    code = [obj for obj in objects if obj not in triggers and obj not in rows]
    # where the function is gone, an earlier attempt got beyond this
    removing = "guard.constraint_statements(text, boolean)"
    if session.worker.execute("select to_regprocedure(%s)", (removing,)).fetchone() != (None,):
        for rule in (obj.identity for obj in rows if obj.kind == "rule"):
            constraints.remove(session.worker, session.observer, rule)
    for table in sorted({obj.identity.split(" ")[0] for obj in triggers}):
        of_table = [obj for obj in triggers if obj.identity.startswith(f"{table} ")]
        session.step(f"triggers of {table}", lambda of=of_table: ledger.drop(session.worker, of))  # type: ignore[misc]
    left = [*code, *rows]
    if before_rows is not None:
        if code:
            session.step("functions and views", lambda: ledger.drop(session.worker, code))
        before_rows()
        left = rows
    if left:
        session.step("functions, views and rules", lambda: ledger.drop(session.worker, left))
    return [f"dropped {obj}" for obj in [*triggers, *code, *rows]]
