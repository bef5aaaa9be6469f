"""The collector of pgTAP files can fail, and judges as pg_prove does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.databases import PROJECT, Databases, MakeDatabase

if TYPE_CHECKING:
    from pytest_postgresql.executors import PostgreSQLExecutor

needs_pg_prove = pytest.mark.skipif(shutil.which("pg_prove") is None, reason="pg_prove is not installed")


def pg_prove(dsn: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = ["pg_prove", "--dbname", dsn, *map(str, files)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@dataclass
class Case:
    """A pgTAP file, what pytest counts in it, something it then says, and whether it is green."""

    script: str
    outcomes: dict[str, int]
    said: str = ""
    green: bool = False


def script(body: str) -> str:
    return f"begin;\n{body}\nselect * from finish();\nrollback;\n"


CASES = {
    "green": Case(
        script("select plan(2); select ok(true, 'one'); select is(1, 1, 'two');"),
        {"passed": 1, "subtests": 2},
        said="SUBPASSED[2 - two]",
        green=True,
    ),
    "skipped": Case(
        script("select plan(1); select * from skip('no reason', 1);"),
        {"passed": 1, "skipped": 1},
        said="no reason",
        green=True,
    ),
    "not yet": Case(
        script("select plan(1); select * from todo('later', 1); select ok(false, 'one');"),
        {"passed": 1, "xfailed": 1},
        said="later",
        green=True,
    ),
    "failed assertion": Case(
        script("select plan(2); select is(1, 2, 'one is two'); select ok(true);"),
        {"failed": 2, "subtests": 1},
        said="want: 2",
    ),
    "failing statement": Case(
        script("select plan(2); select ok(true); select 1 / 0; select ok(true);"),
        {"failed": 1, "subtests": 1},
        said="after 1 assertions: division by zero",
    ),
    "unreadable statement": Case(
        script("select plan(1); select ok(true); selekt;"),
        {"failed": 1},
        said='near "selekt"',
    ),
    "too few": Case(
        script("select plan(2); select ok(true);"),
        {"failed": 1, "subtests": 1},
        said="planned 2 assertions, ran 1",
    ),
    "too many": Case(
        script("select plan(1); select ok(true); select ok(true);"),
        {"failed": 1, "subtests": 2},
        said="planned 1 assertions, ran 2",
    ),
    "no plan": Case("begin; select 'nothing'; rollback;", {"failed": 1}, said="no plan"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture
def tap_dsn(make_database: MakeDatabase) -> str:
    dsn = make_database()
    with psycopg.connect(dsn) as connection:
        connection.execute("create extension pgtap")
    return dsn


@each_case
def test_collector_judges(case: Case, tap_dsn: str, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"""
        import pytest

        @pytest.fixture
        def tap_database():
            return {tap_dsn!r}
    """)
    pytester.mkdir("pgtests").joinpath("a.sql").write_text(case.script)

    result = pytester.runpytest_inprocess("-v", "-p", "tests.pgtap", "pgtests/a.sql")

    assert result.parseoutcomes() == case.outcomes
    assert case.said in result.stdout.str()


@needs_pg_prove
@each_case
def test_pg_prove_judges_alike(case: Case, tap_dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "a.sql"
    file.write_text(case.script)
    assert (pg_prove(tap_dsn, file).returncode == 0) == case.green


@pytest.mark.slow
@needs_pg_prove
def test_project_files_are_green_under_pg_prove(databases: Databases, server: PostgreSQLExecutor) -> None:
    """As CONTRIBUTING.md has it, word for word."""
    (commands,) = re.findall(r"```sh\n(.*?)```", (PROJECT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GUARD_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    named = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user, "PATH": path}
    proved = subprocess.run(
        ["bash", "-e", "-c", commands],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=PROJECT,
        env=kept | named,
    )
    databases.drop("postgresql:///proof")
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert "Result: PASS" in proved.stdout
