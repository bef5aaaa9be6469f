"""The suite's PostgreSQL and the databases on it, as fixtures.

A database is a clone of a template that is made once a session, when the first test asks for it:

    database    guard applied to an empty database
    legacy      a gateway's database as it is before guard: 1000 calls, dirty (examples/legacy)
    adopted     legacy, with guard applied
    make_database()             an empty one
    make_database("template")   a clone of a template of the test's own

Each is a connection string, and dropped after the test. `guard(dsn, "verify", "--json")` runs the command.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import port_for
import psycopg
import pytest
from psycopg import sql
from pytest_postgresql.executors import PostgreSQLExecutor

PROJECT = Path(__file__).parent.parent

RunGuard = Callable[..., "subprocess.CompletedProcess[str]"]
MakeDatabase = Callable[..., str]


GUARD = str(Path(sys.executable).with_name("guard"))


def run_guard(
    dsn: str | None, *arguments: str, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the guard command in an environment that names no server but by the variables given here."""
    options = ["--dsn", dsn] if dsn else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GUARD_"))}
    return subprocess.run(
        [GUARD, *options, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=kept | environment,
    )


class Databases:
    """Creates and drops databases on the suite's server."""

    def __init__(self, server: PostgreSQLExecutor) -> None:
        self._address = f"postgresql://{server.user}@{server.host}:{server.port}"
        self._names = (f"test_{number}" for number in itertools.count(1))

    def create(self, template: str = "template1") -> str:
        """A new database's connection string."""
        name = next(self._names)
        self._execute("create database {} template {}", name, template)
        return f"{self._address}/{name}"

    def drop(self, dsn: str) -> None:
        self._execute("drop database {} with (force)", self.name(dsn))

    @staticmethod
    def name(dsn: str) -> str:
        return dsn.rpartition("/")[2]

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(f"{self._address}/postgres", autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextmanager
def temporary_server(options: str = "") -> Iterator[PostgreSQLExecutor]:
    """A PostgreSQL of its own; its data are thrown away, so nothing waits for the disk. Options: `-c name=value`."""
    with tempfile.TemporaryDirectory(prefix="guard-tests-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        executor = PostgreSQLExecutor(
            executable=str(Path(__file__).with_name("pg_ctl-as-postgres")),
            host="127.0.0.1",
            port=port_for.select_random(),
            user="postgres",
            dbname="postgres",
            datadir=f"{folder}/data",
            unixsocketdir=folder,
            logfile=f"{folder}/log",
            startparams="-w",
            # the executor itself turns fsync off
            postgres_options=f"-c synchronous_commit=off -c full_page_writes=off -c max_connections=100 {options}",
        )
        with executor:
            _wait_until_ready(executor)
            yield executor


def _wait_until_ready(server: PostgreSQLExecutor, seconds: float = 60) -> None:
    """The executor goes by the process: under load the server may still be starting up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(host=server.host, port=server.port, user=server.user, dbname="postgres").close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQLExecutor]:
    """The PostgreSQL process: host, port, user."""
    with temporary_server() as executor:
        yield executor


@pytest.fixture(scope="session")
def databases(server: PostgreSQLExecutor) -> Databases:
    return Databases(server)


@pytest.fixture
def make_database(databases: Databases) -> Iterator[MakeDatabase]:
    made: list[str] = []

    def make(template: str = "template1") -> str:
        made.append(databases.create(template))
        return made[-1]

    yield make
    for dsn in made:
        databases.drop(dsn)


@pytest.fixture(scope="session")
def guard() -> RunGuard:
    return run_guard


@pytest.fixture(scope="session")
def greenfield_template(databases: Databases) -> str:
    return databases.name(_apply(databases.create()))


@pytest.fixture(scope="session")
def legacy_template(databases: Databases) -> str:
    dsn = databases.create()
    files = [f"--file={PROJECT / 'examples' / 'legacy' / name}" for name in ("schema.sql", "load.sql")]
    options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    subprocess.run(["psql", *options, *files, dsn], check=True, env=os.environ | {"PGOPTIONS": "-c legacy.calls=1000"})
    return databases.name(dsn)


@pytest.fixture(scope="session")
def adopted_template(databases: Databases, legacy_template: str) -> str:
    return databases.name(_apply(databases.create(legacy_template)))


@pytest.fixture
def database(make_database: MakeDatabase, greenfield_template: str) -> str:
    return make_database(greenfield_template)


@pytest.fixture
def legacy(make_database: MakeDatabase, legacy_template: str) -> str:
    return make_database(legacy_template)


@pytest.fixture
def adopted(make_database: MakeDatabase, adopted_template: str) -> str:
    return make_database(adopted_template)


@pytest.fixture(scope="session")
def tap_database(databases: Databases, greenfield_template: str) -> Iterator[str]:
    """Where pgTAP files run, under pytest and pg_prove alike: guard applied, and pgTAP beside it.

    pgTAP has a schema of its own, so that tests about schema public see the application's objects only; the
    database's own search_path finds it, whichever client connects.
    """
    dsn = databases.create(greenfield_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create schema tap")
        connection.execute("grant usage on schema tap to public")  # assertions are made under other roles too
        connection.execute("create extension pgtap schema tap")
        connection.execute(
            sql.SQL("alter database {} set search_path = public, tap").format(sql.Identifier(databases.name(dsn)))
        )
    yield dsn
    databases.drop(dsn)


def _apply(dsn: str) -> str:
    applied = run_guard(dsn, "apply", timeout=300)
    if applied.returncode:
        pytest.fail(f"guard apply failed:\n{applied.stdout}{applied.stderr}", pytrace=False)
    return dsn
