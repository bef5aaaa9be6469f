"""`guard up`, `guard down`, `guard status`: the embedded server."""

from __future__ import annotations

from dataclasses import asdict

import click

from guard.cli.base import State, json_option, pass_state
from guard.server import EmbeddedServer, ServerStatus


@click.command(short_help="Start a private PostgreSQL; make it if there is none.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Listen on 127.0.0.1:N too, with a password.")
@json_option
@pass_state
def up(state: State, port: int | None) -> None:
    """Start a private PostgreSQL, and make it first if there is none.

    It listens on a socket that only you can reach. With --port, for this start, it listens on the loopback
    address too, and the connection string names the file that holds the password.

    \b
    Examples:
      guard up
      guard up --port 5433
      GUARD_HOME=./scratch guard up
    """
    server = EmbeddedServer()
    with state.err.status("Starting PostgreSQL ..."):
        started = server.up(port)
    _print(state, server.status(), None if started else "It was running already.")


@click.command()
@json_option
@pass_state
def down(state: State) -> None:
    """Stop the private PostgreSQL; its data stay.

    \b
    Examples:
      guard down
    """
    server = EmbeddedServer()
    with state.err.status("Stopping PostgreSQL ..."):
        stopped = server.down()
    _print(state, server.status(), None if stopped else "It was not running.")


@click.command(short_help="Tell whether the private PostgreSQL runs, and where.")
@json_option
@pass_state
def status(state: State) -> None:
    """Tell whether the private PostgreSQL runs, where it is, and how to connect.

    The exit status is 0 whether it runs or not: scripts read "running" from --json. Its other keys are
    version, pid, home, socket_folder, port, dsn and binaries; what does not apply is null.

    \b
    Examples:
      guard status
      guard status --json
      psql "$(guard status --json | jq -r .dsn)"
    """
    _print(state, EmbeddedServer().status())


def _print(state: State, server: ServerStatus, remark: str | None = None) -> None:
    if state.as_json:
        state.print_json(asdict(server))
        return
    condition = f"running, pid {server.pid}" if server.running else "stopped"
    rows = {
        "server": f"PostgreSQL {server.version}, {condition}" if server.version else condition,
        "home": server.home,
        "programs": server.binaries,
        "DSN": server.dsn,
    }
    for name, value in rows.items():
        if value:
            state.out.print(f"{name:<8}  {value}", markup=False, soft_wrap=True)
    if remark:
        state.out.print(remark)
