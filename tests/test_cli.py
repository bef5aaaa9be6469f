"""What every command has in common: options, errors in one line, exit statuses, no secrets in the output."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import click
import pytest

from guard.cli import main
from tests.databases import Databases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_postgresql.executors import PostgreSQLExecutor

    from tests.databases import MakeDatabase, RunGuard

SECRET = "sEcr3t"  # noqa: S105  # opens nothing


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield path, command


COMMANDS = dict(commands(main))

REPORTS = (("audit",), ("plan",), ("verify",), ("apply",), ("rules", "list"), ("rules", "show", "missing_direction"))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example(path: tuple[str, ...], guard: RunGuard) -> None:
    shown = guard(None, *path, "--help")
    assert shown.returncode == 0
    assert re.search(rf"\n  Examples?:\n    .*guard.* {' '.join(path)}", shown.stdout), shown.stdout


def test_help_names_every_command_and_the_exit_statuses(guard: RunGuard) -> None:
    shown = guard(None, "-h").stdout
    assert {path[0] for path in COMMANDS} <= set(shown.split())
    assert "Exit status: 0 fine, 1 guard failed, 2 violations or drift found." in shown


@pytest.mark.parametrize("path", REPORTS, ids=" ".join)
def test_json_before_and_after_the_command(path: tuple[str, ...], adopted: str, guard: RunGuard) -> None:
    before = guard(adopted, "--json", *path)
    after = guard(adopted, *path, "--json")
    assert (before.returncode, before.stderr) == (after.returncode, after.stderr)
    assert json.loads(before.stdout) == json.loads(after.stdout)


def test_version(guard: RunGuard) -> None:
    assert re.fullmatch(r"guard, version \d+\.\d+\.\d+\n", guard(None, "--version").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("apply", "--nonsense"),
        ("nonsense",),
        ("--nonsense", "apply"),
        ("rules", "nonsense"),
        ("rules", "set", "missing_direction", "--mode", "nonsense"),
        ("rollback", "--to"),
        ("up", "--port", "0"),
        (),
    ],
)
def test_wrong_usage_is_a_failure_not_a_finding(arguments: tuple[str, ...], guard: RunGuard) -> None:
    refused = guard(None, *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Usage: guard" in refused.stderr or refused.stderr.startswith("Error: ")


def test_no_database_is_named(tmp_path: Path, guard: RunGuard) -> None:
    refused = guard(None, "audit", GUARD_HOME=str(tmp_path / "home"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "guard: No database is named and the embedded server is not running. "
        "Start one with `guard up`, or name one with --dsn, GUARD_DSN or libpq's PG* variables.\n"
    )


def test_database_named_by_variables(adopted: str, server: PostgreSQLExecutor, guard: RunGuard) -> None:
    variables = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"}
    named = guard(None, "verify", **variables, PGDATABASE=Databases.name(adopted))
    assert (named.returncode, named.stderr) == (0, "")
    named = guard(None, "verify", GUARD_DSN=adopted, PGHOST="nowhere.invalid")
    assert (named.returncode, named.stderr) == (0, "")


UNREACHABLE = {
    "refused": ("postgresql://user:{}@127.0.0.1:1/booking", "connection failed"),
    "refused, as keywords": ("host=127.0.0.1 port=1 user=x password={}", "connection failed"),
    "unknown host": ("postgresql://user:{}@nowhere.invalid/booking", "nowhere.invalid"),
    "no socket": ("postgresql://user:{}@/booking?host=/nonexistent", "No such file or directory"),
    "unknown option": ("postgresql://user:{}@127.0.0.1/booking?colour=red", "cannot be parsed"),
    "bad port": ("postgresql://user:{}@127.0.0.1:port/booking", "invalid integer value"),
    "at sign in the password": ("postgresql://user:x@{}@127.0.0.1/booking", "write @, : and /"),
    "colon and slash in the password": ("postgresql://user:x/{}@127.0.0.1/booking", "write @, : and /"),
    "blank in the password": ("host=127.0.0.1 port=1 password=x {}", "cannot be parsed"),
    "unclosed quote": ("host=127.0.0.1 port=1 password='{}", "cannot be parsed"),
}


@pytest.mark.parametrize(("dsn", "said"), UNREACHABLE.values(), ids=UNREACHABLE.keys())
def test_unreachable_database_is_one_line_without_the_password(dsn: str, said: str, guard: RunGuard) -> None:
    refused = guard(dsn.format(SECRET), "audit")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("guard: ")
    assert said in refused.stderr
    assert SECRET not in refused.stderr

    debugged = guard(dsn.format(SECRET), "--debug", "audit")
    assert "Traceback (most recent call last)" in debugged.stderr
    assert SECRET not in debugged.stderr


def test_wrong_database_and_user(adopted: str, guard: RunGuard) -> None:
    for dsn in (adopted + "_not_there", adopted.replace("postgres@", f"nobody:{SECRET}@")):
        refused = guard(dsn, "verify")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "does not exist" in refused.stderr
        assert SECRET not in refused.stderr


def test_traceback_only_with_debug(legacy: str, guard: RunGuard) -> None:
    plain = guard(legacy, "rules", "list")
    assert plain.stderr == "guard: Guard is not installed in this database. Run guard apply.\n"
    debugged = guard(legacy, "--debug", "rules", "list")
    assert debugged.returncode == 1
    assert "Traceback (most recent call last)" in debugged.stderr
    assert "guard.errors.GuardError: Guard is not installed in this database." in debugged.stderr


def test_exit_statuses(legacy: str, make_database: MakeDatabase, guard: RunGuard) -> None:
    empty = make_database()
    assert guard(empty, "audit").returncode == 1
    assert guard(empty, "verify").returncode == 2
    assert guard(legacy, "audit").returncode == 2
    assert guard(legacy, "plan").returncode == 0
    assert guard(empty, "apply").returncode == 0
    assert guard(empty, "audit").returncode == 0
    assert guard(empty, "verify").returncode == 0


def test_lines_are_not_broken_where_nobody_looks(adopted: str, guard: RunGuard) -> None:
    """Output that is piped or redirected is for programs and files, which have no width."""
    moved = guard(adopted, "rules", "set", "missing_direction", "--mode", "correct")
    assert max(map(len, moved.stdout.splitlines())) > 150
    planned = guard(adopted, "plan", "--rules", "/")
    assert planned.returncode == 0
