"""What every command shares: its state, its errors, its output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import click
import psycopg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard import database
from guard.errors import GuardError, from_database

#: Exit status when the command worked and found violations or drift.
FOUND = 2

# click's own status for a wrong option is 2 as well
click.UsageError.exit_code = 1

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class State:
    """The options given before the command, and where output goes."""

    dsn: str | None
    as_json: bool
    debug: bool
    redis_url: str | None = None

    def __post_init__(self) -> None:
        self.out = _console()
        self.err = _console(stderr=True)

    def connect(self, **options: Any) -> database.Connection:
        """Connect to the database that the user named."""
        return database.connect(database.resolve_dsn(self.dsn), **options)

    def print_json(self, value: Any) -> None:
        click.echo(json.dumps(value, indent=2, default=str))

    def print_table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
        """Print rows as a table; a column whose name starts with `#` is right-aligned. Only a Text has a style."""
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
        for row in rows:
            cells = ("" if cell is None else cell for cell in row)
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
        self.out.print(table)


def _console(*, stderr: bool = False) -> Console:
    """Text is printed as it is: a path is not broken at the width of a terminal, `[x]` is not a style."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


pass_state = click.make_pass_decorator(State)


def json_option(command: F) -> F:
    """Accept --json after the command as well as before it."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        context.find_object(State).as_json |= value  # type: ignore[union-attr]  # the group always sets it

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=remember, help="Print JSON instead of tables."
    )(command)


class GuardGroup(click.Group):
    """The top group: an error is one line with its fix, and exit status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            state: State = context.obj
            if state.debug:
                raise
            fail(_as_guard_error(error))


def _as_guard_error(error: Exception) -> GuardError:
    if isinstance(error, GuardError):
        return error
    if isinstance(error, psycopg.Error):
        return from_database(error)
    return GuardError(f"{type(error).__name__}: {error}")


def fail(error: GuardError) -> NoReturn:
    message = " ".join(error.message.split())
    fix = " ".join(error.fix.split())
    click.echo(f"guard: {message}{'' if message.endswith('.') else '.'} {fix}", err=True)
    sys.exit(1)
