"""docs/errors.md lists every error a user can meet: the messages of guard/, the SQLSTATEs of sql/ and migrations/."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import psycopg
import pytest

from guard import errors
from tests.databases import PROJECT

CATALOGUE = " ".join((PROJECT / "docs/errors.md").read_text().split())
CLASSES = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
#: Raised and caught within one function: no user meets it.
INTERNAL = {"ZG099", "ZG321", "ZG499"}


def messages() -> Iterator[tuple[str, str]]:
    """Where an error is raised, and the longest part of its message that is always the same."""
    for path in sorted((PROJECT / "guard").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if not isinstance(raised, ast.Call) or not isinstance(raised.func, ast.Name) or not raised.args:
                continue
            if raised.func.id in CLASSES:
                parts = [part.value for part in ast.walk(raised.args[0]) if isinstance(part, ast.Constant)]
                longest = max((part for part in parts if isinstance(part, str)), key=len, default="")
                if longest:
                    yield f"{path.relative_to(PROJECT)}:{raised.lineno}", longest.strip(" .:'\"([")


def sqlstates() -> set[str]:
    files = [path for folder in ("sql", "migrations") for path in (PROJECT / folder).rglob("*.sql")]
    return {state for path in files for state in re.findall(r"'(ZG\d{3}|01ZG\d)'", path.read_text())}


@pytest.mark.parametrize(("place", "message"), list(messages()))
def test_message_is_listed(place: str, message: str) -> None:
    assert message in CATALOGUE, place


@pytest.mark.parametrize("sqlstate", sorted(sqlstates() - INTERNAL))
def test_sqlstate_is_listed(sqlstate: str) -> None:
    assert sqlstate in CATALOGUE


def test_every_line_of_a_table_is_in_one() -> None:
    """A blank line would end it."""
    blocks = re.findall(r"(?:^\|.*\n?)+", (PROJECT / "docs/errors.md").read_text(), re.MULTILINE)
    assert [block for block in blocks if not re.match(r".*\n\|( --- \|)+\n", block)] == []


def test_warning_of_a_fault_carries_no_phone_number(database: str) -> None:
    warned: list[str | None] = []
    fault = "select guard.note_fault('a test', 'P0001', 'no room for +49 151 1234567')"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: warned.append(notice.message_primary))
        connection.execute(fault)
        assert connection.execute("select message from guard.faults").fetchall() == [("no room for ***67",)]
        connection.execute("alter table guard.faults rename to gone")
        connection.execute(fault)
    assert warned == [
        "guard could not do its part in a test: no room for ***67",
        "guard could not do its part in a test: no room for ***67",
        "guard could not count its fault in a test: 42P01",
    ]
