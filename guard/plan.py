"""What `guard apply` would do: every statement, the lock that it takes, and the size of the table it takes it on.

Read-only. The locks are PostgreSQL's documented ones for the forms that guard uses; a test runs every statement and
compares with pg_locks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import sqlparse
from psycopg import sql

from guard import adoption, constraints, cron, database, ledger, migrations
from guard.adoption import Obstacle
from guard.database import Connection

#: Statement form → lock mode. The group `table` names the relation that is locked, or an index of it.
_LOCKS = [
    (r"alter table (?:only )?(?P<table>[\w.]+) validate constraint", "SHARE UPDATE EXCLUSIVE"),
    (r"alter table (?:only )?(?P<table>[\w.]+) ", "ACCESS EXCLUSIVE"),
    (r"create (?:or replace )?(?:constraint )?trigger \w+ .*? on (?P<table>[\w.]+) ", "SHARE ROW EXCLUSIVE"),
    (r"drop trigger if exists (?P<trigger>\w+) on (?P<table>[\w.]+)", "ACCESS EXCLUSIVE"),
    (r"drop index concurrently (?P<table>[\w.]+) ", "SHARE UPDATE EXCLUSIVE"),
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

_COMMENT = re.compile(r"--[^\n]*")
_HEADER = re.compile(r"\A(?:\s*--[^\n]*\n)*\s*")

#: How the constraint of a rule comes into force, by its kind.
_CONSTRAINT = {
    "check": (
        "alter table {table} add constraint {name} {definition} not valid",
        "alter table {table} validate constraint {name}",
    ),
    "exclude": ("alter table {table} add constraint {name} {definition}",),
    "unique": ("create unique index concurrently {name} on {table} {definition}",),
}


class TableLock(TypedDict):
    """A lock on a table that exists: about how many rows it has, and its size in bytes, indexes included."""

    lock: str
    table: str
    rows: int
    bytes: int


class Step(TypedDict):
    """One statement, and its locks on existing tables, but for those that neither a reader nor a writer would feel."""

    source: str
    statement: str
    locks: list[TableLock]


@dataclass(frozen=True)
class Lock:
    """A lock on an existing or a new table; `trigger` if it is taken only where that trigger is there."""

    mode: str
    table: str
    trigger: str | None = None


def obstacles(connection: Connection, own_rules: Path | None = None, app_timezone: str | None = None) -> list[Obstacle]:
    """Why apply would refuse before the first of the steps; empty if it would not."""
    with connection.transaction():
        connection.execute("set transaction read only")
        return adoption.obstacles(connection, ledger.read_files(own_rules), app_timezone)


def steps(
    connection: Connection,
    own_rules: Path | None = None,
    *,
    app_timezone: str | None = None,
    prune: bool = False,
) -> list[Step]:
    """Every statement of what is pending, in order; empty if there is nothing to do."""
    with connection.transaction():
        connection.execute("set transaction read only")
        return [
            {"source": source, "statement": statement, "locks": _existing(connection, statement)}
            for source, statement in _statements(connection, own_rules, app_timezone, prune)
        ]


def _statements(
    connection: Connection, own_rules: Path | None, app_timezone: str | None, prune: bool
) -> Iterator[tuple[str, str]]:
    applied = migrations.applied_ids(connection)
    if not migrations.is_installed(connection):
        yield "schema", migrations.CREATE_SCHEMA.strip()
    for migration in migrations.shipped():
        if migration.id not in applied or migrations.is_unfinished(connection, migration):
            source = f"migrations/{migration.id}.sql"
            for name in migrations.index_names(migration):
                if migrations.index_is_valid(connection, name) is False:
                    yield source, f"drop index concurrently public.{name}"
            for text in migrations.statements(migration):
                yield source, _HEADER.sub("", text)
    difference = ledger.compare(connection, ledger.read_files(own_rules))
    for file in difference.to_apply:
        for text in sqlparse.split(file.text):
            yield file.path, _HEADER.sub("", text)
    for statement in ledger.drop_statements(connection, difference.obsolete):
        yield "obsolete", statement
    if prune:
        for statement in ledger.drop_statements(connection, difference.orphaned):
            yield "orphaned", statement
    if app_timezone is not None and app_timezone != _zone(connection):
        call = sql.SQL("select guard.set_setting('app_timezone', {})").format(sql.Literal(app_timezone))
        yield "setting", call.as_string()
    triggers = "".join(file.text for file in difference.files if file.path.startswith("sql/triggers/"))
    for file in difference.to_apply:
        if _is_due(connection, file.registration, triggers):
            yield from _constraint(file.registration)
    registrations = {file.registration.get("rule"): file.registration for file in difference.files}
    for rule in constraints.due_on_own_tables(connection):
        if constraints.violations(connection, rule) == 0:
            anew = rule in constraints.drifted(connection)
            for statement in constraints.statements(connection, rule, wanted=not anew):
                yield f"constraint guard_{rule}", statement
            if anew and rule in registrations:
                yield from _constraint(registrations[rule])
    jobs = [file.registration for file in difference.files if any(o.kind == "job" for o in file.provides)]
    for statement in cron.planned(connection, {job["job"]: job["schedule"] for job in jobs}):
        yield "pg_cron", statement


def _zone(connection: Connection) -> str | None:
    """The zone of the application's timestamps as it is set; None where guard is not installed."""
    if not database.has_relation(connection, "guard.settings"):
        return None
    row = connection.execute("select value from guard.settings where name = 'app_timezone'").fetchone()
    return row[0] if row else None


def _is_due(connection: Connection, rule: dict[str, str], triggers: str) -> bool:
    """Whether a file registers a new rule whose constraint comes into force at once, since its table is guard's own.

    A CHECK does, if it accepts marks and a trigger makes them: see guard.constraint_wanted.
    """
    if "constraint_kind" not in rule or _is_registered(connection, rule["rule"]):
        return False
    marked = "guard_corrections" in rule["constraint_definition"] and f"'{rule['rule']}'" in triggers
    return (marked or rule["constraint_kind"] != "check") and _is_own(connection, f"public.{rule['entity_type']}s")


def _constraint(rule: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What brings the constraint of a rule in force where there is none."""
    name = f"guard_{rule['rule']}"
    table = f"public.{rule['entity_type']}s"
    for statement in _CONSTRAINT[rule["constraint_kind"]]:
        yield (
            f"constraint {name}",
            statement.format(table=table, name=name, definition=rule["constraint_definition"]),
        )


def _is_registered(connection: Connection, rule: str) -> bool:
    if not database.has_relation(connection, "guard.rules"):
        return False
    return connection.execute("select from guard.rules where rule = %s", (rule,)).fetchone() is not None


def _is_own(connection: Connection, table: str) -> bool:
    """Whether guard makes, or made, the table."""
    if not migrations.is_installed(connection):
        return _size(connection, table) is None
    query = "select from guard.provenance where kind = 'table' and relation = %s"
    return connection.execute(query, (table,)).fetchone() is not None


def on_one_line(statement: str) -> str:
    """A statement without comments and line breaks: to be shown, not to be run."""
    return " ".join(_COMMENT.sub("", statement).split()).rstrip("; ")


def locks_of(statement: str) -> list[Lock]:
    """The strongest lock that a statement (on one line) takes on each table, if a reader or writer would feel it."""
    if _NEW_TABLE.match(statement):
        return [Lock("SHARE ROW EXCLUSIVE", table) for table in dict.fromkeys(_REFERENCES.findall(statement))]
    for pattern, mode in _COMPILED:
        if match := pattern.match(statement + " "):
            return [Lock(mode, match["table"], match.groupdict().get("trigger"))]
    return []


def _existing(connection: Connection, statement: str) -> list[TableLock]:
    line = on_one_line(statement)
    new_table = _NEW_TABLE.match(line)
    if new_table and _size(connection, new_table[1]):
        return []  # the table is there: nothing is made
    found: list[TableLock] = []
    for lock in locks_of(line):
        table = _table_of_index(connection, lock.table) or lock.table
        taken = table_lock(connection, lock.mode, table)
        if taken and (lock.trigger is None or _has_trigger(connection, table, lock.trigger)):
            found.append(taken)
    return found


def table_lock(connection: Connection, mode: str, table: str) -> TableLock | None:
    """A lock with the size of its table; None if there is no such table."""
    size = _size(connection, table)
    return {"lock": mode, "table": table, "rows": size[0], "bytes": size[1]} if size else None


def size(lock: TableLock) -> str:
    """How big the table is: about 1000 rows, 416 kB."""
    return f"about {lock['rows']} rows, {_readable(lock['bytes'])}"


def _readable(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def _table_of_index(connection: Connection, relation: str) -> str | None:
    """The table that an index belongs to; None for what is no index."""
    row = connection.execute(
        """
        select format('%%I.%%I', c.relnamespace::regnamespace, c.relname)
        from pg_catalog.pg_index as i
        inner join pg_catalog.pg_class as c on i.indrelid = c.oid
        where i.indexrelid = to_regclass(%s)
        """,
        (relation,),
    ).fetchone()
    return row[0] if row else None


def _has_trigger(connection: Connection, table: str, trigger: str) -> bool:
    query = "select from pg_catalog.pg_trigger where tgrelid = to_regclass(%s) and tgname = %s"
    return connection.execute(query, (table, trigger)).fetchone() is not None


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
