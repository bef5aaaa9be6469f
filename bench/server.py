"""The scratch databases that benchmarks run in: on the server that GUARD_DSN names, else on a throwaway one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import TupleRow

from guard import database
from guard.server import EmbeddedServer

#: Nothing waits for the disk, and no checkpoint falls into a measurement: such waits are the same on both sides of a
#: ratio and would flatter it.
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "fsync": "off"}

Connection = psycopg.Connection[TupleRow]


class Server:
    """Makes databases, and removes them together with the roles that came with guard."""

    def __init__(self, dsn: str, *, throwaway: bool) -> None:
        self._dsn = dsn
        self._made: list[str] = []
        self._throwaway = throwaway
        with self.connect() as connection:
            self.version = str(connection.info.parameter_status("server_version"))
            self._roles_before = _guard_roles(connection)

    def connect(self, name: str | None = None) -> Connection:
        """Connect as benchmarks do; its cursors take parameters as $1, $2."""
        connection = psycopg.connect(
            self._address(name), autocommit=True, prepare_threshold=None, cursor_factory=psycopg.RawCursor
        )
        connection.execute("set synchronous_commit = off")
        connection.execute("set max_parallel_workers_per_gather = 0")
        connection.execute("set client_min_messages = warning")
        return connection

    def clock(self, connection: Connection) -> Callable[[], float]:
        """Seconds that the connection's process on the server has computed for, whatever else the machine does.

        Elsewhere than on Linux, and on a server that was not started here, the time of day.
        """
        used = Path(f"/proc/{connection.info.backend_pid}/schedstat")
        if self._throwaway and used.exists():
            return lambda: int(used.read_text().split()[0]) / 1e9
        return time.perf_counter

    def create(self, name: str, template: str | None = None) -> None:
        """Make an empty database, or a copy of one made here that nobody is connected to."""
        with self.connect() as connection:
            statement = sql.SQL("create database {} template {}").format(
                self._identifier(name), self._identifier(template) if template else sql.SQL("template0")
            )
            connection.execute(statement)
        self._made.append(name)

    def guard(self, name: str, *arguments: str) -> None:
        """Run the guard command on a database, as a user would."""
        command = [str(Path(sys.executable).with_name("guard")), "--dsn", self._address(name), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def clean(self) -> None:
        """Drop all that was made here."""
        with self.connect() as connection:
            while self._made:
                drop = sql.SQL("drop database if exists {} with (force)").format(self._identifier(self._made[-1]))
                connection.execute(drop)
                self._made.pop()
            for role in _guard_roles(connection) - self._roles_before:
                # another database of this server may have come to use it meanwhile
                with contextlib.suppress(psycopg.errors.DependentObjectsStillExist):
                    connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))

    def _address(self, name: str | None) -> str:
        return conninfo.make_conninfo(self._dsn, **({"dbname": _full(name)} if name else {}))

    def _identifier(self, name: str) -> sql.Identifier:
        return sql.Identifier(_full(name))


def _full(name: str) -> str:
    return f"guard_bench_{os.getpid()}_{name}"


def _guard_roles(connection: Connection) -> set[str]:
    return {row[0] for row in connection.execute(r"select rolname from pg_roles where rolname like 'guard\_%'")}


@contextmanager
def scratch_server() -> Iterator[Server]:
    """A server to measure on; what was made there is gone when the block ends."""
    with contextlib.ExitStack() as stack:
        dsn = os.environ.get("GUARD_DSN")
        server = Server(dsn or stack.enter_context(_throwaway()), throwaway=not dsn)
        stack.callback(server.clean)
        yield server


@contextmanager
def _throwaway() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="guard-bench-") as home:
        os.chmod(home, 0o711)  # noqa: S103  # as root, the server runs as another user, who must get in
        embedded = EmbeddedServer(Path(home))
        try:
            embedded.up()
            with database.connect(embedded.dsn()) as connection:
                for name, value in SETTINGS.items():
                    connection.execute(
                        sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value))
                    )
            embedded.down()
            embedded.up()
            yield embedded.dsn()
        finally:
            embedded.down()
