"""What the parts of the demo show things with; it ends as soon as something is not as it should be."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

GUARD = str(Path(sys.executable).with_name("guard"))

console = Console(highlight=False)


def guard(*arguments: str, expected: int = 0) -> None:
    """Run a guard command and show what it prints. Ends the demo if it exits otherwise than expected."""
    console.print(f"\n[bold cyan]$ guard {shlex.join(arguments)}[/bold cyan]")
    sys.stdout.flush()
    completed = subprocess.run([GUARD, *arguments], check=False)
    if completed.returncode != expected:
        fail(f"guard {arguments[0]} exited {completed.returncode}, and {expected} was expected")


def guard_json(*arguments: str) -> Any:
    console.print(f"\n[bold cyan]$ guard {shlex.join(arguments)} --json[/bold cyan]")
    completed = subprocess.run([GUARD, *arguments, "--json"], check=False, stdout=subprocess.PIPE)
    if completed.returncode not in (0, 2):
        fail(f"guard {arguments[0]} exited {completed.returncode}")
    return json.loads(completed.stdout)


def write(connection: psycopg.Connection, statement: str) -> None:
    console.print(f"\n[bold cyan]=# {' '.join(statement.split())};[/bold cyan]")
    connection.execute(statement.encode())


def show(connection: psycopg.Connection, query: str, expected: Sequence[tuple[Any, ...]]) -> None:
    """Run a query, print its rows, and end the demo if they are not the expected ones."""
    console.print(f"\n[bold cyan]=# {' '.join(query.split())};[/bold cyan]")
    cursor = connection.execute(query.encode())
    found = cursor.fetchall()
    table = Table(*[column.name for column in cursor.description or ()], box=None, header_style="bold", pad_edge=False)
    for row in found:
        table.add_row(*["null" if cell is None else str(cell) for cell in row])
    console.print(table)
    if found != list(expected):
        fail(f"expected {list(expected)}")


def title(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def expect(true: bool, what: str) -> None:
    if not true:
        fail(f"not so: {what}")
    console.print(f"[green]ok[/green]: {what}")


def fail(message: str) -> None:
    console.print(f"[red]{message}[/red]")
    sys.exit(1)
