"""What tests compare before and after: the schema as pg_dump prints it, guard's record of it, and the rows."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg

from guard import install
from guard import rollback as rolling_back
from tests.databases import PROJECT

TABLES = ("companies", "customers", "services", "staff", "calls", "appointments")

Row = tuple[Any, ...]


#: The ids of all migrations, in order.
MIGRATIONS = sorted(file.stem for file in (PROJECT / "migrations").glob("*.sql") if not file.stem.endswith(".rollback"))


def query(dsn: str, question: str, *parameters: Any) -> list[Row]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(question.encode(), parameters or None).fetchall()


def execute(dsn: str, *statements: str) -> None:
    """Each statement in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def schema(dsn: str) -> str:
    """The schema as pg_dump prints it, without the random key that it puts around it."""
    command = ["pg_dump", "--schema-only", f"--dbname={dsn}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "".join(
        line for line in printed.splitlines(keepends=True) if not line.startswith(("\\restrict", "\\unrestrict"))
    )


def catalog(dsn: str) -> tuple[str, list[Row], list[Row], list[Row]]:
    """All that two databases with guard in the same state have in common."""
    return (
        schema(dsn),
        query(dsn, "select kind, identity, path, checksum, fingerprint from guard.objects order by kind, identity"),
        query(dsn, "select (to_jsonb(r) - 'created_at' - 'updated_at')::text from guard.rules as r order by rule"),
        query(dsn, "select kind, relation, name from guard.provenance where kind <> 'role' order by 1, 2, 3"),
    )


def rows(dsn: str) -> dict[str, Row]:
    """For each of the application's tables the number of rows and a checksum, whatever guard added to them aside."""
    return {
        table: query(
            dsn,
            f"select count(*), md5(string_agg((to_jsonb(t) - 'guard_corrections')::text, ',' order by t.id))"
            f" from public.{table} as t",
        )[0]
        for table in TABLES
    }


def apply(dsn: str, **options: Any) -> list[str]:
    """What `guard apply` does, in this process."""
    with install.exclusive(dsn) as session:
        return install.apply(session, lambda *_: None, **options)


def rollback(dsn: str, export_to: Path | None = None, **options: Any) -> list[str]:
    """What `guard rollback` does, in this process."""
    with install.exclusive(dsn) as session:
        if export_to is not None:
            rolling_back.export(session.worker, export_to)
        return rolling_back.run(session, lambda *_: None, **options)
