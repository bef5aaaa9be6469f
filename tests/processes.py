"""Commands that run beside the test, and sessions that stand in their way."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

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
