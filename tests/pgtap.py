"""Collects the pgTAP files of pgtests/: a file is a test, each of its assertions a subtest.

A file is SQL and nothing else, so that `pg_prove` runs the very same one:

    begin;
    select plan(2);
    select is(...);
    select throws_ok(...);
    select * from finish();
    rollback;

It runs on the database of the fixture `tap_database`, and leaves it as it was. `pytest pgtests/flags.sql`
runs one file, `-v` shows its assertions. As in pg_prove, the file fails when an assertion does, when a
statement does, and when other assertions ran than were planned.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAN = re.compile(r"1\.\.(?P<count>\d+)$")
ASSERTION = re.compile(
    r"(?P<failed>not )?ok (?P<number>\d+)(?: - (?P<what>.*?))?"
    r"(?: # (?P<directive>skip|todo)\b:?(?P<why>.*))?$",
    re.IGNORECASE,
)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    if file_path.suffix == ".sql" and file_path.parent == parent.config.rootpath / "pgtests":
        return PgTapFile.from_parent(parent, path=file_path)
    return None


class PgTapFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield PgTapPlan.from_parent(self, name="plan", callobj=run_plan)


class PgTapPlan(pytest.Function):
    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.path.name


@dataclass
class Assertion:
    """One line of TAP, and the diagnostics that follow it."""

    line: str
    number: int
    what: str
    failed: bool
    directive: str
    why: str
    diagnostics: list[str] = field(default_factory=list)

    def report(self) -> None:
        if self.directive == "skip":
            pytest.skip(self.why)
        if self.failed and self.directive:
            pytest.xfail(self.why)
        if self.failed:
            pytest.fail("\n".join([self.line, *self.diagnostics]), pytrace=False)


def run_plan(request: pytest.FixtureRequest, subtests: pytest.Subtests, tap_database: str) -> None:
    lines, error = execute(tap_database, request.path.read_text())
    planned, assertions = parse(lines)
    for assertion in assertions:
        with subtests.test(f"{assertion.number} - {assertion.what}"):
            assertion.report()
    if error:
        pytest.fail(f"an error ended it after {len(assertions)} assertions: {error}", pytrace=False)
    if planned is None:
        pytest.fail("no plan", pytrace=False)
    ran = [assertion.number for assertion in assertions]
    if ran != list(range(1, planned + 1)):
        pytest.fail(f"planned {planned} assertions, ran {len(ran)}: {ran}", pytrace=False)


def execute(dsn: str, script: str) -> tuple[list[str], str | None]:
    """The lines that the script's single-column results hold, and the error that ended it early.

    libpq is called directly because psycopg's cursor, on an error, drops the results before it.
    """
    lines: list[str] = []
    with closing(psycopg.connect(dsn)) as connection:
        connection.pgconn.send_query(script.encode())
        while result := connection.pgconn.get_result():
            if result.status == ExecStatus.FATAL_ERROR:
                return lines, result.get_error_message()
            if result.nfields == 1:
                for row in range(result.ntuples):
                    lines += (result.get_value(row, 0) or b"").decode().splitlines()
    return lines, None


def parse(lines: list[str]) -> tuple[int | None, list[Assertion]]:
    """The number of assertions planned, if a plan was made, and the assertions that ran."""
    planned = None
    assertions: list[Assertion] = []
    for line in lines:
        if match := PLAN.match(line):
            planned = int(match["count"])
        elif match := ASSERTION.match(line):
            assertions.append(
                Assertion(
                    line=line,
                    number=int(match["number"]),
                    what=match["what"] or "",
                    failed=bool(match["failed"]),
                    directive=(match["directive"] or "").lower(),
                    why=(match["why"] or "").strip(),
                )
            )
        elif line.startswith("#") and assertions:
            assertions[-1].diagnostics.append(line)
    return planned, assertions
