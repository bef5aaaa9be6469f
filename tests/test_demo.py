"""The demo's parts do what they say: each checks its claims itself."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import pytest
from pytest_postgresql.executors import PostgreSQLExecutor

from tests.databases import PROJECT, MakeDatabase

pytestmark = pytest.mark.slow


def shown(code: str, dsn: str) -> str:
    """What a part of the demo prints, when it has come to its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GUARD_"))}
    completed = subprocess.run(
        [sys.executable, "-c", f"import sys; from examples import booking, demo; {code}", dsn],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PROJECT,
        env=kept,
    )
    assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr
    return completed.stdout


def test_the_main_part_on_a_legacy_database(server: PostgreSQLExecutor) -> None:
    dsn = f"postgresql://{server.user}@{server.host}:{server.port}/postgres"
    try:
        assert "the report as a page: build/demo-report.html" in shown("demo.run(sys.argv[1], 1000)", dsn)
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop database if exists legacy with (force)")


def test_the_booking_path_on_an_empty_database(make_database: MakeDatabase) -> None:
    assert "the audit counts zero for every rule" in shown("booking.run(sys.argv[1])", make_database())
