"""Drives yoyo: one migration at a time, each marked in the transaction that applies it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import psycopg
import yoyo
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.migrations import Migration, read_sql_migration

from guard import assets, database
from guard.database import LOCK_TIMEOUT_MS, Connection
from guard.errors import named
from guard.locks import CONCURRENT_TIMEOUT_MS, retry_on_lock_timeout

#: Made once for the whole server, by the first migration.
ROLES = ("guard_owner", "guard_app", "guard_operator", "guard_reader", "guard_monitor")

#: The schema and, in one statement, the record of what guard added: the schema is guard's own if the record is there.
CREATE_SCHEMA = """
create schema guard
create table provenance (
    kind text not null check (kind in ('role', 'extension', 'table', 'column', 'index')),
    relation text not null,
    name text not null default '',
    added_at timestamptz not null default now(),
    primary key (kind, relation, name)
)
"""

_MIGRATION_TABLE = "_yoyo_migration"
_CONCURRENT_INDEX = re.compile(
    r"create\s+(?:unique\s+)?index\s+concurrently\s+if\s+not\s+exists\s+(\w+)", re.IGNORECASE
)


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo is published without types
    """yoyo's psycopg backend, connected the way guard connects, its own tables in schema guard."""

    schema = "guard"

    def connect(self, dburi: str) -> Connection:
        connection = database.connect(dburi)
        database.prepare_for_ddl(connection)
        return connection

    def list_tables(self, **_: Any) -> list[str]:
        rows = self.connection.execute(
            "select tablename from pg_catalog.pg_tables where schemaname = %s", (self.schema,)
        )
        return [row[0] for row in rows]


#: The tables that no migration makes and drops.
LAST_TABLES = (Backend.log_table, Backend.lock_table, Backend.version_table, _MIGRATION_TABLE, "provenance")


class Migrations:
    """The migrations that ship with guard, against one database.

    The caller holds guard's advisory lock: yoyo's own lock is a row that survives a crash, and is broken here.
    """

    def __init__(self, dsn: str, observer: Connection) -> None:
        self._observer = observer
        self._backend = Backend(dsn, _MIGRATION_TABLE)
        self._worker: Connection = self._backend.connection
        #: What migrations had to say: their `raise warning`s.
        self.warnings: list[str] = []
        self._worker.add_notice_handler(self._note)
        if self._backend.lock_table not in self._backend.list_tables():
            self._backend.create_lock_table()
        self._backend.break_lock()
        self._backend.ensure_internal_schema_updated()
        self._all = yoyo.read_migrations(str(assets.MIGRATIONS))

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.sqlstate == "01000" and notice.message_primary:
            self.warnings.append(notice.message_primary)

    def close(self) -> None:
        self._worker.close()

    def pending(self) -> list[Migration]:
        return list(self._backend.to_apply(self._all))

    def applied(self) -> list[Migration]:
        """Newest first, as they are rolled back."""
        return list(self._backend.to_rollback(self._all))

    def cut_short(self) -> list[Migration]:
        """Migrations, newest first, that are not applied and may have left an index that is half built."""
        rows = self._worker.execute("select relation from guard.provenance where kind = 'index'").fetchall()
        begun = {relation for (relation,) in rows}
        return [m for m in reversed(self.pending()) if begun.intersection(f"public.{name}" for name in index_names(m))]

    def apply(self, migration: Migration) -> None:
        self._run(migration, "apply")

    def rollback(self, migration: Migration) -> None:
        self._run(migration, "rollback")

    def unfinished_indexes(self) -> list[Migration]:
        """Applied migrations whose index is missing or invalid: a concurrent build was cut short, or it was dropped."""
        return [migration for migration in self.applied() if is_unfinished(self._worker, migration)]

    def _run(self, migration: Migration, direction: str) -> None:
        migration.load()
        attempt = self._run_in_transaction if migration.use_transactions else self._run_concurrently
        what = f"migration {migration.id}"
        with named(what):
            retry_on_lock_timeout(
                lambda: attempt(migration, direction), what=what, worker=self._worker, observer=self._observer
            )

    def _run_in_transaction(self, migration: Migration, direction: str) -> None:
        with self._backend.transaction():
            migration.process_steps(self._backend, direction)
            self._worker.execute("reset role")
            self._mark(migration, direction)

    def _run_concurrently(self, migration: Migration, direction: str) -> None:
        """Outside a transaction, so it can be cut short anywhere: what it left is cleared away before it runs."""
        names = index_names(migration)
        if direction == "apply":
            self._worker.execute(
                """
                insert into guard.provenance (kind, relation)
                select 'index', 'public.' || n.name from unnest(%s::text[]) as n (name)
                on conflict do nothing
                """,
                (names,),
            )
        self._worker.execute(f"set lock_timeout = {CONCURRENT_TIMEOUT_MS}")
        try:
            for name in names:
                if index_is_valid(self._worker, name) is False:
                    self._worker.execute(f"drop index concurrently public.{name}")
            migration.process_steps(self._backend, direction)
        finally:
            self._worker.execute(f"set lock_timeout = {LOCK_TIMEOUT_MS}")
        with self._backend.transaction():
            if direction == "rollback":
                self._worker.execute(
                    "delete from guard.provenance where kind = 'index' and relation = any(%s)",
                    ([f"public.{name}" for name in names],),
                )
            self._mark(migration, direction)

    def _mark(self, migration: Migration, direction: str) -> None:
        if direction == "rollback":
            self._backend.unmark_one(migration, log=False)
        elif not self._backend.is_applied(migration):
            self._backend.mark_one(migration, log=False)


def is_installed(connection: Connection) -> bool:
    """Whether the schema guard is there and guard's own; it may be on its way in or out."""
    return database.has_relation(connection, "guard.provenance")


def drop_schema(connection: Connection) -> None:
    """Drop what the rollback of the first migration leaves: yoyo's tables, the record, and the schema itself."""
    connection.execute(f"drop table {', '.join(f'guard.{table}' for table in LAST_TABLES)}".encode())
    connection.execute("drop schema guard")


def is_unfinished(connection: Connection, migration: Migration) -> bool:
    """Whether an index that the migration builds is missing or invalid."""
    return any(index_is_valid(connection, name) is not True for name in index_names(migration))


def index_is_valid(connection: Connection, name: str) -> bool | None:
    """None if there is no such index in schema public."""
    row = connection.execute(
        "select i.indisvalid from pg_catalog.pg_index as i where i.indexrelid = to_regclass(%s)",
        (f"public.{name}",),
    ).fetchone()
    return row[0] if row else None


def index_names(migration: Migration) -> list[str]:
    """The indexes that a migration builds concurrently."""
    return _CONCURRENT_INDEX.findall(Path(migration.path).read_text(encoding="utf-8"))


def statements(migration: Migration) -> list[str]:
    """The statements of a migration, in order."""
    parsed: tuple[Any, Any, list[str]] = read_sql_migration(migration.path)
    return parsed[2]


def rollback_text(migration: Migration) -> str:
    """The file that undoes a migration."""
    return Path(migration.path).with_suffix(".rollback.sql").read_text(encoding="utf-8")


def checksum(migration: Migration) -> str:
    """yoyo's own hash is of the id alone; this one sees an edit."""
    return hashlib.sha256(Path(migration.path).read_bytes()).hexdigest()


def shipped() -> list[Migration]:
    """All migrations, in order, without a database."""
    return list(yoyo.read_migrations(str(assets.MIGRATIONS)))


def applied_ids(connection: Connection) -> set[str]:
    """The ids of the applied migrations, read-only; empty where guard is not installed."""
    if not database.has_relation(connection, f"guard.{_MIGRATION_TABLE}"):
        return set()
    return {row[0] for row in connection.execute("select migration_id from guard._yoyo_migration").fetchall()}
