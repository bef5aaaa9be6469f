"""guard apply, plan, rollback, verify."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from guard import database, install
from guard import plan as planning
from guard import rollback as rolling_back
from guard import verify as verifying
from guard.cli.base import FOUND, State, json_option, pass_state

own_rules_option = click.option(
    "--rules",
    "own_rules",
    envvar="GUARD_RULES",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of your own rules, in the form of sql/checks.  [env: GUARD_RULES]",
)

app_timezone_option = click.option(
    "--app-timezone", metavar="ZONE", help="The zone of the application's local timestamps, e.g. Europe/Berlin."
)
prune_option = click.option("--prune", is_flag=True, help="Drop objects that no file provides any more.")


def _bar(state: State) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=state.err,
        transient=True,
        disable=not state.err.is_terminal,
    )


@click.command()
@own_rules_option
@app_timezone_option
@prune_option
@json_option
@pass_state
def apply(state: State, own_rules: Path | None, app_timezone: str | None, prune: bool) -> None:
    """Install guard, or bring it up to date.

    Safe on a live database: every lock is waited for briefly and tried again. Killed midway, run it again.

    \b
    Examples:
      guard apply
      guard --dsn postgresql://owner@db.example/booking apply --app-timezone Europe/Berlin
    """
    with install.exclusive(database.resolve_dsn(state.dsn)) as session, _bar(state) as bar:
        task = bar.add_task("apply", total=None)
        done = install.apply(
            session,
            lambda what, position, total: bar.update(task, description=what, completed=position, total=total),
            own_rules=own_rules,
            app_timezone=app_timezone,
            prune=prune,
        )
    if state.as_json:
        state.print_json({"done": done})
    elif done:
        for line in done:
            state.out.print(line)
    else:
        state.out.print("Nothing to do: the database is as the files say.")


@click.command()
@click.option("--to", metavar="ID", help="Keep migrations up to and including this one.")
@click.option("--all", "everything", is_flag=True, help="Remove guard from the database altogether.")
@click.option(
    "--export-to",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=".",
    show_default=True,
    help="The folder for the file that guard's rows are saved in first.",
)
@json_option
@pass_state
def rollback(state: State, to: str | None, everything: bool, export_to: Path) -> None:
    """Undo the last apply, or more.

    Objects get the text that they had before; migrations are rolled back, and where that is so, guard's own rows, with
    the values before every correction, are saved to a file first, once its triggers and functions write no more. With
    --all the schema is as it was before guard. The application's rows stay as they are, corrections included. If
    objects of others depend on what would go, they are named, and nothing is changed. Killed midway, run it again.

    \b
    Examples:
      guard rollback
      guard rollback --to 0007.rules-and-alerts
      guard rollback --all
    """
    if to is not None and everything:
        raise click.UsageError("--to and --all exclude each other.")
    with install.exclusive(database.resolve_dsn(state.dsn)) as session, _bar(state) as bar:
        exported: list[Path] = []

        def save() -> None:
            path, has_alerts = rolling_back.export(session.worker, export_to)
            exported.append(path)
            what = (
                "Guard's rows, with the values before every correction, are"
                if has_alerts
                else "What a rollback before this one left of guard's rows is"
            )
            state.err.print(f"{what} saved in {path}.")

        task = bar.add_task("rollback", total=None)
        done = rolling_back.run(
            session,
            lambda what, position, total: bar.update(task, description=what, completed=position, total=total),
            to=to,
            everything=everything,
            save=save,
        )
    if state.as_json:
        state.print_json({"done": done, "export": exported[0] if exported else None})
    else:
        for line in done:
            state.out.print(line)


@click.command(short_help="Show what apply would do, and which locks it takes.")
@own_rules_option
@app_timezone_option
@prune_option
@json_option
@pass_state
def plan(state: State, own_rules: Path | None, app_timezone: str | None, prune: bool) -> None:
    """Show what apply would do: every statement, its lock, the size of the table.

    Exit status 2 if apply would refuse: what is in its way is listed last. Changes nothing.
    Locks are waited for 200 ms at a time, so that writers never queue behind one for longer.

    \b
    Examples:
      guard plan
      guard plan --json | jq '.steps[] | select(any(.locks[]; .lock == "ACCESS EXCLUSIVE"))'
    """
    with state.connect() as connection:
        obstacles = planning.obstacles(connection, own_rules, app_timezone)
        steps = planning.steps(connection, own_rules, app_timezone=app_timezone, prune=prune)
    if state.as_json:
        state.print_json({"obstacles": [obstacle._asdict() for obstacle in obstacles], "steps": steps})
    elif not steps:
        state.out.print("Nothing to do: the database is as the files say.")
    else:
        source = None
        for step in steps:
            if step["source"] != source:
                source = step["source"]
                state.out.print(f"\n{source}", style="bold")
            line = planning.on_one_line(step["statement"])
            state.out.print("  " + (_shorten(line, state.out.width - 2) if state.out.is_terminal else line))
            for lock in step["locks"]:
                state.out.print(Text.assemble("    ", *described(lock)))
        locked = sorted({(lock["table"], lock["lock"]) for step in steps for lock in step["locks"]})
        state.out.print(f"\n{len(steps)} statements.", "They lock:" if locked else "They lock no existing table.")
        if locked:
            state.print_table(("table", "lock"), locked)
    if obstacles:
        if not state.as_json:
            state.out.print("\nguard apply would refuse:", style="red")
            for obstacle in obstacles:
                state.out.print(f"  {obstacle.what}. {obstacle.fix}")
        click.get_current_context().exit(FOUND)


def _shorten(statement: str, width: int) -> str:
    return statement if len(statement) <= width else statement[: width - 1] + "…"


def described(lock: planning.TableLock) -> tuple[tuple[str, str], str]:
    """A lock, for Text.assemble: ACCESS EXCLUSIVE on public.calls: about 1000 rows, 416 kB."""
    return (lock["lock"], "yellow"), f" on {lock['table']}: {planning.size(lock)}"


@click.command(short_help="Check that the database is as guard left it.")
@own_rules_option
@json_option
@pass_state
def verify(state: State, own_rules: Path | None) -> None:
    """Check that the database is as guard left it, and that every rule does what its mode says.

    Compares files, ledger and catalog, and breaks each rule with a bad row inside a transaction that is rolled back.
    Exit status 2 if anything is found.

    \b
    Examples:
      guard verify
      guard verify --json | jq -r '.findings[].fix' | sort -u
    """
    with state.connect() as connection:
        result = verifying.run(connection, own_rules)
    if state.as_json:
        state.print_json(result)
    else:
        for note in result["notes"]:
            state.out.print(f"note: {note}")
        if result["ok"]:
            if unprobed := result["unprobed"]:
                agreed = f"files, ledger and catalog agree. Rules not tried on a bad row: {', '.join(unprobed)}."
            else:
                agreed = "files, ledger and catalog agree, and every rule does what its mode says."
            state.out.print(Text.assemble(("ok", "green"), f": {agreed}"))
        else:
            state.print_table(
                ("kind", "object", "fix"), [(f["kind"], f["object"], f["fix"]) for f in result["findings"]]
            )
    if not result["ok"]:
        click.get_current_context().exit(FOUND)
