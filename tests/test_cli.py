"""What every command has in common: options, errors in one line, exit statuses, no secrets in the output."""

from __future__ import annotations

import json
import os
import re
import subprocess
from subprocess import PIPE
from typing import TYPE_CHECKING

import click
import psycopg
import pytest

from guard.cli import main
from tests.databases import GUARD, Databases
from tests.processes import invoke

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
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    shown = invoke(None, *path, "--help")
    assert shown.exit_code == 0
    assert re.search(rf"\n  Examples?:\n    .*guard.* {' '.join(path)}", shown.stdout), shown.stdout


def test_help_names_every_command_and_the_exit_statuses() -> None:
    shown = invoke(None, "-h").stdout
    assert {path[0] for path in COMMANDS} <= set(shown.split())
    assert "Exit status: 0 fine, 1 guard failed or was used wrongly, 2 violations or drift found." in " ".join(
        shown.split()
    )


@pytest.mark.parametrize("path", REPORTS, ids=" ".join)
def test_json_before_and_after_the_command(path: tuple[str, ...], adopted: str) -> None:
    before = invoke(adopted, "--json", *path)
    after = invoke(adopted, *path, "--json")
    assert (before.exit_code, before.stderr) == (after.exit_code, after.stderr)
    assert json.loads(before.stdout) == json.loads(after.stdout)


def test_version() -> None:
    assert re.fullmatch(r"guard, version \d+\.\d+\.\d+\n", invoke(None, "--version").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("apply", "--nonsense"),
        ("nonsense",),
        ("--nonsense", "apply"),
        ("rules", "nonsense"),
        ("rules", "set", "missing_direction", "--mode", "nonsense"),
        ("rollback", "--to"),
        ("rules", "set", "missing_direction"),
        ("up", "--port", "0"),
        ("incidents", "show", "x"),
        ("breaker", "open", "a:b"),
        ("settings", "set", "cooldown_seconds"),
        ("settings", "set", "cooldown_seconds", "60", "--nonsense"),
        ("rollback", "--all", "--to", "0001"),
        ("report", "--output", "/nowhere/report.txt"),
        ("report", "--json", "--format", "html"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_a_failure_in_one_line_with_its_fix(arguments: tuple[str, ...], adopted: str) -> None:
    refused = invoke(adopted, *arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert re.fullmatch(r"guard: [A-Z-].*\. guard( [a-z]+)* --help shows how it is used\.\n", refused.stderr)


def test_wrong_usage_says_what_can_be() -> None:
    refused = invoke(None, "rules", "set", "missing_direction")
    assert refused.stderr == (
        "guard: Missing option '--mode'. Choose from: off, observe, correct, enforce. "
        "guard rules set --help shows how it is used.\n"
    )


def test_a_command_without_its_command_shows_its_help() -> None:
    for arguments in ((), ("rules",)):
        shown = invoke(None, *arguments)
        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr.startswith(" ".join(("Usage: guard", *arguments)))


def test_no_database_is_named(tmp_path: Path) -> None:
    refused = invoke(None, "audit", GUARD_HOME=str(tmp_path / "home"))
    assert (refused.exit_code, refused.stdout) == (1, "")
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
def test_unreachable_database_is_one_line_without_the_password(dsn: str, said: str) -> None:
    refused = invoke(dsn.format(SECRET), "audit")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("guard: ")
    assert said in refused.stderr
    assert SECRET not in refused.stderr


def test_traceback_without_the_password(guard: RunGuard) -> None:
    for name in ("refused", "at sign in the password", "unclosed quote"):
        debugged = guard(UNREACHABLE[name][0].format(SECRET), "--debug", "audit")
        assert "Traceback (most recent call last)" in debugged.stderr
        assert SECRET not in debugged.stderr


def test_wrong_database_and_user(adopted: str) -> None:
    for dsn in (adopted + "_not_there", adopted.replace("postgres@", f"nobody:{SECRET}@")):
        refused = invoke(dsn, "verify")
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "does not exist" in refused.stderr
        assert SECRET not in refused.stderr


def test_traceback_only_with_debug(legacy: str, guard: RunGuard) -> None:
    plain = guard(legacy, "rules", "list")
    assert plain.stderr == "guard: Guard is not installed in this database. Run guard apply.\n"
    debugged = guard(legacy, "--debug", "rules", "list")
    assert debugged.returncode == 1
    assert "Traceback (most recent call last)" in debugged.stderr
    assert "guard.errors.NotInstalledError: Guard is not installed in this database." in debugged.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("incidents", "list"),
        ("incidents", "show", "1"),
        ("incidents", "resolve", "1"),
        ("incidents", "baseline"),
        ("call", "1"),
        ("notify", "--list"),
        ("notify",),
        ("undo", "--since", "2h"),
        ("reconcile",),
        ("review", "list"),
        ("review", "take"),
        ("intents", "list"),
        ("intents", "recover"),
        ("jobs", "run", "detect"),
        ("settings", "list"),
        ("kpis",),
        ("breaker", "list"),
    ],
    ids=" ".join,
)
def test_guard_is_not_installed(arguments: tuple[str, ...], legacy: str) -> None:
    refused = invoke(legacy, *arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "guard: Guard is not installed in this database. Run guard apply.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jobs", "runs", "nix"), "There is no job 'nix'. guard jobs list shows them.\n"),
        (("incidents", "list", "--rule", "nix"), "There is no rule 'nix'. guard rules list shows them.\n"),
        (("rules", "set", "nix", "--mode", "off"), "there is no rule 'nix' [ZG010]. guard rules list shows them.\n"),
        (
            ("rules", "set", "tenant_mismatch", "--mode", "enforce"),
            "First: guard rules set inconsistent_link_status --mode correct",
        ),
        (("breaker", "events", "nix"), "There is no circuit 'nix'. guard breaker list shows them"),
        (("audit", "--app-timezone", "Nowhere/Xy"), "Nowhere/Xy is not a time zone that the server knows."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unknown_names(arguments: tuple[str, ...], said: str, adopted: str) -> None:
    refused = invoke(adopted, *arguments)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert said in refused.stderr


@pytest.mark.parametrize(
    "arguments", [("kpis", "--from"), ("kpis", "--to"), ("undo", "--since"), ("incidents", "snooze", "1")], ids=" ".join
)
def test_moments(arguments: tuple[str, ...], adopted: str) -> None:
    for value in ("2026-02-30", "soon", "2 h", "0001-01-01T00:00+23:00"):
        refused = invoke(adopted, *arguments, value)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert f"'{value}' is no moment; write 2026-01-31T12:00, or 30m, 2h, 3d." in refused.stderr


def test_spans(adopted: str) -> None:
    assert invoke(adopted, "kpis", "--from", "3d", "--to", "2h").stderr == ""
    assert "ZG701" in invoke(adopted, "kpis", "--from", "2h", "--to", "3d").stderr


def test_narrow_terminal(adopted: str) -> None:
    """Names stay whole, and columns that matter less make room."""
    settings = [row["name"] for row in json.loads(invoke(adopted, "settings", "list", "--json").stdout)]
    shown = invoke(adopted, "settings", "list", COLUMNS="80").stdout
    assert set(settings) <= {line.split(" ")[0] for line in shown.splitlines()}
    assert max(map(len, shown.splitlines())) <= 80
    assert invoke(adopted, "jobs", "run", "detect").exit_code == 0
    jobs = invoke(adopted, "jobs", "list", COLUMNS="80").stdout
    assert re.search(r"^detect  .* succeeded +[-0-9]+ \d\d:\d\d$", jobs, re.MULTILINE), jobs
    for width, known in (("80", False), ("140", True)):
        found = invoke(adopted, "incidents", "list", COLUMNS=width).stdout
        assert re.search(r" critical  open +appointment_made_mismatch +call \d+ ", found), found
        assert bool(re.search("severity .* company", found)) == known
        assert ("Left out for want of room: since, assignee, times, company. " in found) == (not known)


@pytest.mark.slow
def test_incidents_of_jobs_and_rules_say_which(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "select guard.register_job('a_job', '0 2 * * *', '1 day', 'select from guard.nothing', 'fails')"
        )
        connection.execute("drop view guard.tenant_mismatch")
    invoke(database, "jobs", "run", "a_job")
    invoke(database, "jobs", "run", "detect")
    found = invoke(database, "incidents", "list").stdout
    assert re.search(r" open +job_failed +job a_job  ", found), found
    assert re.search(r" open +rule_failed +rule tenant_mismatch  ", found), found
    listed = json.loads(invoke(database, "incidents", "list", "--rule", "job_failed", "--json").stdout)
    assert [(incident["entity_id"], incident["subject"]) for incident in listed] == [(None, "a_job")]


def test_circuit_that_is_forced_open_waits_for_its_reset(adopted: str) -> None:
    assert invoke(adopted, "breaker", "open", "a:b", "--reason", "test").exit_code == 0
    listed = invoke(adopted, "breaker", "list").stdout
    assert re.search(r"^a:b .* forced_open .* until reset ", listed, re.MULTILINE), listed
    assert invoke(adopted, "breaker", "watch", "--times", "1").stdout == listed
    shown = invoke(adopted, "breaker", "show", "a:b").stdout
    assert re.search(r"^state +forced_open *\nagain in +until reset *\n", shown, re.MULTILINE), shown
    assert json.loads(invoke(adopted, "breaker", "show", "a:b", "--json").stdout)["retry_after_seconds"] is None


def test_a_circuit_that_is_not_known(adopted: str) -> None:
    refused = invoke(adopted, "breaker", "reset", "typo")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "There is no circuit 'typo'. guard breaker list shows them" in refused.stderr
    assert invoke(adopted, "breaker", "list", "--json").stdout == "[]\n"
    for command, state, key in (("open", "forced open", "new"), ("close", "forced closed", "newer")):
        first, again = (invoke(adopted, "breaker", command, key, "--reason", "test").stdout for _ in range(2))
        assert first == (
            f"{key} is {state}. It was unknown until now: if the key is wrong, guard breaker reset {key} lifts this.\n"
        )
        assert again == f"{key} is {state}.\n"
    assert (
        json.loads(invoke(adopted, "breaker", "open", "3", "--reason", "test", "--json").stdout)["was_known"] is False
    )
    assert json.loads(invoke(adopted, "breaker", "reset", "3", "--json").stdout)["was_known"] is True


def test_tick_without_a_job_that_is_due_prints_json_too(adopted: str) -> None:
    with psycopg.connect(adopted, autocommit=True) as connection:
        connection.execute("select guard.set_job(j.job, false) from guard.jobs as j")
    assert invoke(adopted, "tick", "--json").stdout == "[]\n"


@pytest.mark.slow
def test_exit_statuses(legacy: str, make_database: MakeDatabase) -> None:
    empty = make_database()
    assert invoke(empty, "audit").exit_code == 1
    assert invoke(empty, "verify").exit_code == 2
    assert invoke(legacy, "audit").exit_code == 2
    assert invoke(legacy, "plan").exit_code == 0
    assert invoke(empty, "apply").exit_code == 0
    assert invoke(empty, "audit").exit_code == 0
    assert invoke(empty, "verify").exit_code == 0


@pytest.mark.slow
def test_a_reader_that_goes_does_not_change_the_exit_status(legacy: str) -> None:
    """As `guard apply | head -1`: the work is done."""

    def unread(*arguments: str) -> tuple[int, str]:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as output:
            ended = subprocess.run([GUARD, "--dsn", legacy, *arguments], stdout=output, stderr=PIPE, text=True)
        return ended.returncode, ended.stderr

    assert unread("plan") == (0, "")
    assert unread("apply") == (0, "")
    assert unread("audit") == (2, "")
    assert unread("audit", "--json") == (2, "")
    assert unread("breaker", "watch") == (0, "")
    assert invoke(legacy, "plan").stdout.startswith("Nothing to do")


def test_lines_are_not_broken_where_nobody_looks(adopted: str) -> None:
    """Output that is piped or redirected is for programs and files, which have no width."""
    moved = invoke(adopted, "rules", "set", "missing_direction", "--mode", "correct")
    assert max(map(len, moved.stdout.splitlines())) > 150
    planned = invoke(adopted, "plan", "--rules", "/")
    assert planned.exit_code == 0
