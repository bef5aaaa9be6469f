"""Commands that run beside the test, and sessions that stand in their way."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from click.testing import CliRunner, Result

from guard.cli import main
from tests.databases import GUARD

#: Whether a session of guard's waits for a lock.
WAITING = """
    select exists (
        select from pg_stat_activity
        where datname = current_database() and application_name = 'guard' and cardinality(pg_blocking_pids(pid)) > 0
    )
"""


def start(dsn: str, *arguments: str) -> subprocess.Popen[str]:
    """Run the guard command in the background."""
    return subprocess.Popen(
        [GUARD, "--dsn", dsn, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def invoke(dsn: str | None, *arguments: str, **environment: str) -> Result:
    """Run the guard command in this process, which saves its start; as run_guard, it knows the variables given only."""
    hidden = dict.fromkeys(name for name in os.environ if name.startswith(("PG", "GUARD_")))
    options = ["--dsn", dsn] if dsn else []
    return CliRunner(env={**hidden, **environment}).invoke(main, [*options, *arguments], prog_name="guard")


@contextmanager
def transaction(dsn: str, *statements: str) -> Iterator[psycopg.Connection]:
    """An open transaction that has run these statements, rolled back in the end."""
    with psycopg.connect(dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        try:
            yield connection
        finally:
            connection.rollback()


@contextmanager
def writer(dsn: str) -> Iterator[list[psycopg.Error]]:
    """Writes calls and appointments of the legacy database all the while; the errors that it met."""
    stop = threading.Event()
    failures: list[psycopg.Error] = []

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("set lock_timeout = '5s'")
            while not stop.is_set():
                try:
                    with connection.transaction():
                        connection.execute("insert into appointments (company_id, call_id) values (1, 50)")
                        connection.execute("update calls set updated_at = updated_at where id % 100 = 50")
                    connection.execute("delete from appointments where call_id = 50 and id > 430")
                    connection.execute("insert into calls (company_id, appointment_made) values (1, false)")
                except psycopg.Error as error:
                    failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join()


def wait_until(dsn: str, question: str, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until the question is answered with true; fails if the process ends before that, or in half a minute."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(1500):
            if connection.execute(question.encode()).fetchone() == (True,):
                return
            if process is not None and process.poll() is not None:
                pytest.fail(f"it ended before {question}:\n{''.join(process.communicate())}")
            time.sleep(0.02)
    pytest.fail(f"half a minute went by before {question}")
