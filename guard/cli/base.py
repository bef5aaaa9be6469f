"""What every command shares: its state, its errors, its output."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

import click
import psycopg
from psycopg.rows import dict_row
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard import database
from guard.errors import GuardError, from_database

#: Exit status when the command worked and found violations or drift.
FOUND = 2

# click's own status for a wrong use is 2 as well
click.UsageError.exit_code = 1

#: How wide a text with blanks may be before it is folded.
_SENTENCE = 24

F = TypeVar("F", bound=Callable[..., Any])
Row = dict[str, Any]


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

    def query(self, statement: str, **parameters: Any) -> list[Row]:
        """Run one statement in a transaction of its own, and return its rows."""
        with self.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement.encode(), parameters).fetchall()

    def print_json(self, value: Any) -> None:
        try:
            click.echo(json.dumps(value, indent=2, default=str))
        except BrokenPipeError:
            self.out.on_broken_pipe()

    def print_table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
        self.out.print(self.table(columns, rows, title=title))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
        """A table; only a Text has a style.

        A column whose name starts with `?` is left out where the terminal is too narrow, the last one first, and a line
        below says so; one with `#` is right-aligned. A column with a sentence in it is folded; others are not, if there
        is room for them.
        """
        texts = [[value if isinstance(value, Text) else Text(_plain(value)) for value in row] for row in rows]
        shown = list(range(len(columns)))
        widths = [max(map(_width, [_title(name), *(row[i].plain for row in texts)])) for i, name in enumerate(columns)]
        sentences = [any(" " in row[i].plain and _width(row[i].plain) > _SENTENCE for row in texts) for i in shown]
        needed = [min(width, _SENTENCE) if sentences[i] else width for i, width in enumerate(widths)]
        # two blanks between two columns
        room = self.out.width - sum(needed) - 2 * (len(columns) - 1)
        for i in reversed(range(len(columns))):
            if room < 0 and columns[i].startswith("?"):
                shown.remove(i)
                room += needed[i] + 2
        left_out = ", ".join(_title(name) for i, name in enumerate(columns) if i not in shown)
        note = f"Left out for want of room: {left_out}. Widen the terminal, or use --json." if left_out else ""
        table = Table(
            title=title,
            title_justify="left",
            caption=Text(note, no_wrap=False, overflow="fold") if note else None,
            caption_justify="left",
            caption_style="dim",
            header_style="bold",
            show_header=any(columns),
            box=None,
            pad_edge=False,
        )
        for i in shown:
            table.add_column(
                _title(columns[i]),
                justify="right" if "#" in columns[i][:2] else "left",
                overflow="fold",
                no_wrap=room >= 0 and not sentences[i],
            )
        for row in texts:
            table.add_row(*(row[i] for i in shown))
        return table

    def print_record(self, row: Row) -> None:
        """Print one row, a line for each column."""
        if self.as_json:
            self.print_json(row)
        else:
            names = [Text(name.replace("_", " "), style="bold") for name in row]
            self.print_table(("", ""), [(name, cell(value)) for name, value in zip(names, row.values(), strict=True)])


def _title(column: str) -> str:
    return column.removeprefix("?").removeprefix("#")


def _plain(value: Any) -> str:
    return "" if value is None else cell(value) if isinstance(value, bool) else str(value)


def _width(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def cell(value: Any) -> str:
    """A value as a table shows it; changes of a row as `column: before → after`."""
    if value is None:
        return "-"
    if isinstance(value, list) and value and all(isinstance(change, dict) and "column" in change for change in value):
        return "\n".join(f"{c['column']}: {cell(c.get('before'))} → {cell(c.get('after'))}" for c in value)
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return local_time(value) if isinstance(value, datetime) else str(value)


def local_time(value: datetime | None) -> str:
    """A moment in the terminal's zone."""
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def local_minute(value: datetime | None) -> str:
    """The same without seconds, which lists have no room for."""
    return local_time(value)[:-3]


class _Console(Console):
    """Silent once its reader has gone, as in `guard apply | head -1`: the exit status says how the work ended."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what is left in the buffer
        os.close(nowhere)


def _console(*, stderr: bool = False) -> _Console:
    """Text is printed as it is: a path is not broken at the width of a terminal, `[x]` is not a style.

    What goes to a file or a pipe has no width, and its tables are not folded.
    """
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 240
    return console


def past(value: str) -> datetime:
    """A moment: 2026-01-31 or 2026-01-31T12:00, in the terminal's zone; or how long ago, as 30m, 2h, 3d."""
    return past_as_written(value).astimezone()


def future(value: str) -> datetime:
    """The same, with a span that is still to pass."""
    return _moment(value, 1).astimezone()


def past_as_written(value: str) -> datetime:
    """As `past`; what is written without a zone has none."""
    return _moment(value, -1)


def _moment(value: str, sign: int) -> datetime:
    span = re.fullmatch(r"(\d{1,6})([smhd])", value)
    try:
        if span:
            unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[span[2]]
            return datetime.now(UTC) + sign * timedelta(**{unit: int(span[1])})
        moment = datetime.fromisoformat(value)
        moment.astimezone()  # the years 1 and 9999 have moments that are in no zone
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is no moment; write 2026-01-31T12:00, or 30m, 2h, 3d.") from None
    return moment


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

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _usage_in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, context: click.Context) -> Any:
        try:
            with _usage_in_one_line():
                return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            state: State = context.obj
            if state.debug:
                raise
            fail(_as_guard_error(error))


@contextmanager
def _usage_in_one_line() -> Iterator[None]:
    """Wrong usage fails as other errors do; a group that is named alone shows its help."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "guard"
        fail(GuardError(error.format_message(), fix=f"{command} --help shows how it is used."))


def _as_guard_error(error: Exception) -> GuardError:
    if isinstance(error, GuardError):
        return error
    if isinstance(error, psycopg.Error):
        return from_database(error)
    return GuardError(f"{type(error).__name__}: {error}")


def fail(error: GuardError) -> NoReturn:
    message = " ".join(error.message.split())
    fix = " ".join(error.fix.split())
    click.echo(f"guard: {message}{'' if message.endswith(('.', '?')) else '.'} {fix}", err=True)
    sys.exit(1)
