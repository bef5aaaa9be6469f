"""Databases on the user's server, made to be thrown away, whatever ends the simulation."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import conninfo, sql

from guard import database, migrations
from guard.errors import GuardError


class Scratch:
    """Databases on the user's server, made to be thrown away."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._prefix = f"guard_simulation_{secrets.token_hex(4)}"
        self._names: list[str] = []
        with database.connect(dsn) as connection:
            row = connection.execute(
                """
                select
                    (select r.rolcreatedb or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user),
                    array(select r.rolname::text from pg_catalog.pg_roles as r where r.rolname = any(%s))
                """,
                (list(migrations.ROLES),),
            ).fetchone()
        assert row is not None  # noqa: S101  # a query without FROM returns one row
        may_create, roles = row
        self._missing_roles = [role for role in migrations.ROLES if role not in roles]
        if not may_create:
            raise GuardError(
                "A simulation needs a database of its own, and this role may not create one.",
                fix="Connect as a role with CREATEDB and CREATEROLE, or use a server of your own: guard up.",
            )

    def create(self, template: str | None = None) -> str:
        """A new database, empty or a copy of another one; its connection string."""
        name = f"{self._prefix}_{len(self._names)}"
        source = "template0" if template is None else conninfo.conninfo_to_dict(template)["dbname"]
        self._names.append(name)
        with database.connect(self._dsn) as connection:
            connection.execute(
                sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(str(source)))
            )
        return conninfo.make_conninfo(self._dsn, dbname=name)

    def drop(self) -> None:
        """Drop every database, and the roles of guard's that were not there before and that no other database uses."""
        try:
            with database.connect(self._dsn) as connection:
                for name in self._names:
                    connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
                made = connection.execute(
                    "select r.rolname from pg_catalog.pg_roles as r where r.rolname = any(%s)", (self._missing_roles,)
                ).fetchall()
                for (role,) in made:
                    # somebody installed guard meanwhile, and needs it
                    with suppress(psycopg.errors.DependentObjectsStillExist):
                        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
        except psycopg.Error as error:
            raise GuardError(
                f"The simulation's databases {self._prefix}_* may have been left behind"
                f" ({str(error).partition(chr(10))[0]}).",
                fix="Drop them with dropdb when the server answers again.",
            ) from error


@contextmanager
def scratch_databases(dsn: str) -> Iterator[Scratch]:
    """Whatever ends the block, a signal included, its databases are dropped, and a second signal does not stop that."""
    scratch = Scratch(dsn)
    try:
        yield scratch
    finally:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
        try:
            scratch.drop()
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
