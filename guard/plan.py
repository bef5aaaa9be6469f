"""What `guard apply` would do: every statement, the lock that it takes, and the size of the table it takes it on.

Read-only. The locks are PostgreSQL's documented ones for the forms that guard uses; a test runs every statement and
compares with pg_locks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import sqlparse

from guard import ledger, migrations
from guard.database import Connection

#: Statement form → lock mode. The group `table` names the relation that is locked.
_LOCKS = [
    (r"alter table (?:only )?(?P<table>[\w.]+) validate constraint", "SHARE UPDATE EXCLUSIVE"),
    (r"alter table (?:only )?(?P<table>[\w.]+) ", "ACCESS EXCLUSIVE"),
    (r"create (?:or replace )?(?:constraint )?trigger \w+ .*? on (?P<table>[\w.]+) ", "SHARE ROW EXCLUSIVE"),
    (r"drop trigger if exists \w+ on (?P<table>[\w.]+)", "ACCESS EXCLUSIVE"),
    (r"create (?:unique )?index concurrently .*? on (?P<table>[\w.]+) ", "SHARE UPDATE EXCLUSIVE"),
    (r"create (?:unique )?index .*? on (?P<table>[\w.]+) ", "SHARE"),
    (r"comment on table (?P<table>[\w.]+) ", "SHARE UPDATE EXCLUSIVE"),
    (r"comment on column (?P<table>\w+\.\w+)\.\w+ ", "SHARE UPDATE EXCLUSIVE"),
    (r"(?:insert into|update|delete from) (?P<table>[\w.]+) ", "ROW EXCLUSIVE"),
    (r"create table if not exists [\w.]+ partition of (?P<table>[\w.]+) ", "ACCESS EXCLUSIVE"),
]
_COMPILED = [(re.compile(pattern, re.IGNORECASE), lock) for pattern, lock in _LOCKS]
_NEW_TABLE = re.compile(r"create table if not exists ([\w.]+) (?!partition of )", re.IGNORECASE)
_REFERENCES = re.compile(r"\breferences ([\w.]+)", re.IGNORECASE)


class Step(TypedDict):
    """One statement. `lock` and `table` are None where no existing table is locked; sizes are null for new tables."""

    source: str
    statement: str
    lock: str | None
    table: str | None
    rows: int | None
    bytes: int | None


@dataclass(frozen=True)
class Lock:
    """A lock on an existing or a new table."""

    mode: str
    table: str


def steps(connection: Connection, own_rules: Path | None = None) -> list[Step]:
    """Every statement of what is pending, in order; empty if there is nothing to do."""
    with connection.transaction():
        connection.execute("set transaction read only")
        applied = migrations.applied_ids(connection)
        found: list[Step] = []
        for migration in migrations.shipped():
            if migration.id not in applied:
                source = f"migrations/{migration.id}.sql"
                found += [_step(connection, source, text) for text in migrations.statements(migration)]
        difference = ledger.compare(connection, ledger.read_files(own_rules))
        for file in difference.to_apply:
            found += [_step(connection, file.path, text) for text in sqlparse.split(file.text)]
        return found


def lock_of(statement: str) -> Lock | None:
    """The strongest lock that a statement takes on a table; None if it takes none that a reader or writer would feel."""
    plain = _flatten(statement)
    if _NEW_TABLE.match(plain):
        referenced = _REFERENCES.search(plain)
        return Lock("SHARE ROW EXCLUSIVE", referenced.group(1)) if referenced else None
    for pattern, mode in _COMPILED:
        if match := pattern.match(plain + " "):
            return Lock(mode, match.group("table"))
    return None


def _flatten(statement: str) -> str:
    return " ".join(sqlparse.format(statement, strip_comments=True).split()).rstrip("; ")


def _step(connection: Connection, source: str, statement: str) -> Step:
    lock = lock_of(statement)
    new_table = _NEW_TABLE.match(_flatten(statement))
    if new_table and _size(connection, new_table.group(1)) is not None:
        lock = None  # the table is there: nothing is created
    size = _size(connection, lock.table) if lock else None
    return {
        "source": source,
        "statement": _flatten(statement),
        "lock": lock.mode if lock and size else None,
        "table": lock.table if lock and size else None,
        "rows": size[0] if size else None,
        "bytes": size[1] if size else None,
    }


def _size(connection: Connection, table: str) -> tuple[int, int] | None:
    """Estimated rows and bytes with indexes; None if the table does not exist yet."""
    row = connection.execute(
        """
        select greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid)
        from pg_catalog.pg_class as c where c.oid = to_regclass(%s)
        """,
        (table,),
    ).fetchone()
    return (row[0], row[1]) if row else None
