"""Which database a command works on, and how it is connected to."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from guard.errors import ConnectionFailedError, NoDatabaseError, NotInstalledError
from guard.server import EmbeddedServer

#: Any of libpq's own variables that name a server means: the user has chosen one.
LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE")

#: How long one attempt waits for a lock that writers would queue behind, in milliseconds.
LOCK_TIMEOUT_MS = 200

Connection = psycopg.Connection[TupleRow]


def resolve_dsn(dsn: str | None) -> str:
    """The connection string to use: `dsn` (--dsn or GUARD_DSN), else libpq's variables, else the embedded server.

    Raises NoDatabaseError when none of them names a server.
    """
    if dsn:
        try:
            parameters = conninfo.conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:
            # libpq's message quotes the string, and with it the password
            raise ConnectionFailedError(
                "The connection string cannot be parsed.",
                fix="Write it as postgresql://user@host/database or as host=... dbname=... .",
            ) from None
        if any("@" in str(parameters.get(name)) for name in ("host", "port", "dbname")):
            # the end of a password, which the server's answer would quote
            raise ConnectionFailedError(
                "The connection string has an @ where there can be none.",
                fix="In a URL, write @, : and / of a user name or a password as %40, %3A and %2F.",
            )
        return dsn
    if any(os.environ.get(name) for name in LIBPQ_VARIABLES):
        return ""
    server = EmbeddedServer()
    if not server.is_running():
        raise NoDatabaseError
    return server.dsn()


def connect(dsn: str, **options: Any) -> Connection:
    """Open an autocommit connection that PgBouncer's transaction mode can serve too.

    Raises psycopg.OperationalError when the server cannot be reached.
    """
    parameters: dict[str, Any] = {"application_name": "guard", "connect_timeout": 10}
    given = conninfo.conninfo_to_dict(dsn)
    parameters |= {name: value for name, value in given.items() if name in parameters}
    return psycopg.connect(dsn, autocommit=True, prepare_threshold=None, **(parameters | options))


def has_relation(connection: Connection, name: str) -> bool:
    """Whether a table, view or index of this qualified name is there."""
    return connection.execute("select to_regclass(%s)", (name,)).fetchone() != (None,)


def require_installed(connection: Connection, table: str) -> None:
    """Raise NotInstalledError unless this table of guard's is there."""
    if not has_relation(connection, f"guard.{table}"):
        raise NotInstalledError


def prepare_for_ddl(connection: Connection) -> None:
    """Session settings for statements that lock the application's tables."""
    connection.execute(f"set lock_timeout = {LOCK_TIMEOUT_MS}")
    connection.execute("set client_min_messages = warning")
    # what others may make in public must not be found by a statement that runs with this role's rights
    connection.execute("set search_path = pg_catalog, pg_temp")
    # if this process is killed, its statement ends too, and with it its locks
    with contextlib.suppress(psycopg.errors.InvalidParameterValue, psycopg.errors.FeatureNotSupported):
        connection.execute("set client_connection_check_interval = '1s'")
