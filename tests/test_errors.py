"""docs/errors.md lists every error a user can meet: the messages of guard/, the SQLSTATEs of sql/ and migrations/."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from guard import errors
from tests.databases import PROJECT

CATALOGUE = " ".join((PROJECT / "docs/errors.md").read_text().split())
CLASSES = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
#: Raised and caught within one function: no user meets it.
INTERNAL = {"ZG499", "ZG099"}


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
