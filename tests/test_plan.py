"""guard plan: what it lists is what apply runs, and the locks that it names are those that the server takes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guard import plan
from tests.catalog import apply, catalog, execute, query, rows, schema
from tests.databases import PROJECT
from tests.processes import transaction, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import MakeDatabase, RunGuard

pytestmark = pytest.mark.slow

#: Table locks, the weakest first. ACCESS SHARE, which every SELECT takes, is no more than nothing here.
MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)

HELD = """
    select c.relname, l.mode
    from pg_locks as l
    inner join pg_class as c on l.relation = c.oid
    where l.pid = %s and c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and l.mode <> 'AccessShareLock'
"""

Locks = dict[str, str]


def listed(dsn: str, own_rules: Path | None = None) -> list[plan.Step]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return plan.steps(connection, own_rules)


def planned(step: plan.Step) -> Locks:
    """`{"calls": "AccessExclusiveLock"}`, the tables in schema public alone."""
    return {
        lock["table"].removeprefix("public."): f"{lock['lock'].title().replace(' ', '')}Lock"
        for lock in step["locks"]
        if lock["table"].startswith("public.")
    }


def strongest(held: list[tuple[str, str]], existing: set[str]) -> Locks:
    found: Locks = {}
    for table, mode in sorted(held, key=lambda row: MODES.index(row[1])):
        if table in existing:
            found[table] = mode
    return found


def run(dsn: str, steps: list[plan.Step]) -> Iterator[tuple[plan.Step, Locks]]:
    """Run each statement in a transaction of its own, in the role that apply runs it in; what it locked."""
    existing = {table for (table,) in query(dsn, "select tablename from pg_tables where schemaname = 'public'")}
    with psycopg.connect(dsn, autocommit=True, options="-c check_function_bodies=off") as connection:
        pid = connection.info.backend_pid
        source = None
        for step in steps:
            if step["source"] != source:
                source = step["source"]
                connection.execute("set role guard_owner" if source.startswith("sql/") else "reset role")
            statement = step["statement"].replace("set local role", "set role")
            if "index concurrently" in statement.splitlines()[0]:
                yield step, strongest(run_concurrently(dsn, connection, statement), existing)
            else:
                with connection.transaction():
                    connection.execute(statement.encode())
                    held = connection.execute(HELD, (pid,)).fetchall()
                yield step, strongest(held, existing)


def run_concurrently(dsn: str, connection: psycopg.Connection, statement: str) -> list[tuple[str, str]]:
    """Run it while an open transaction keeps it from ending; what it holds and waits for meanwhile."""
    pid = connection.info.backend_pid
    with transaction(
        dsn, "insert into appointments (company_id) values (1)", "insert into calls (company_id) values (1)"
    ):
        builder = threading.Thread(target=connection.execute, args=(statement.encode(),))
        builder.start()
        wait_until(dsn, f"select cardinality(pg_blocking_pids({pid})) > 0")
        held = query(dsn, HELD, pid)
    builder.join()
    return held


def test_locks_on_an_existing_database(legacy: str) -> None:
    steps = listed(legacy)
    locked = [(step["statement"], planned(step), taken) for step, taken in run(legacy, steps)]
    assert [(statement, taken) for statement, _, taken in locked] == [
        (statement, plan) for statement, plan, _ in locked
    ]
    assert {mode for _, _, taken in locked for mode in taken.values()} == {
        "ShareUpdateExclusiveLock",
        "ShareRowExclusiveLock",
        "AccessExclusiveLock",
    }


def test_locks_where_tables_are_missing(legacy: str) -> None:
    execute(legacy, "drop table appointments, services, staff")
    steps = listed(legacy)
    locked = [(step["statement"], planned(step), taken) for step, taken in run(legacy, steps)]
    assert [(statement, taken) for statement, _, taken in locked] == [
        (statement, plan) for statement, plan, _ in locked
    ]
    (made,) = [taken for statement, _, taken in locked if "not exists public.appointments" in statement]
    assert made == dict.fromkeys(("companies", "calls", "customers"), "ShareRowExclusiveLock")


@pytest.mark.parametrize("made", ["adopted", "database"])
def test_locks_of_an_upgrade(made: str, request: pytest.FixtureRequest) -> None:
    dsn = request.getfixturevalue(made)
    execute(
        dsn,
        "update guard.objects set checksum = 'older' where kind <> 'migration'",
        "update pg_index set indisvalid = false where indexrelid = 'guard_calls_booking_id'::regclass",
        "alter table calls drop constraint if exists guard_missing_direction",
        "insert into companies (id, name) values (1, 'One') on conflict do nothing",
    )
    steps = listed(dsn)
    assert "drop index concurrently public.guard_calls_booking_id" in [step["statement"] for step in steps]
    locked = [(step["statement"], planned(step), taken) for step, taken in run(dsn, steps)]
    assert [(statement, taken) for statement, _, taken in locked] == [
        (statement, plan) for statement, plan, _ in locked
    ]
    dropped = [taken for statement, _, taken in locked if statement.startswith("drop trigger")]
    assert dropped == [{"calls": "AccessExclusiveLock"}] * 2
    constrained = [taken for statement, _, taken in locked if "constraint guard_missing_direction" in statement]
    assert constrained == (
        [{"calls": "AccessExclusiveLock"}, {"calls": "ShareUpdateExclusiveLock"}] if made == "database" else []
    )


@pytest.mark.parametrize("made", ["empty", "legacy"])
def test_what_is_listed_is_what_apply_runs(
    made: str, request: pytest.FixtureRequest, make_database: MakeDatabase
) -> None:
    template = "template1" if made == "empty" else request.getfixturevalue("legacy_template")
    planned, applied = make_database(template), make_database(template)
    apply(applied)

    with psycopg.connect(planned, autocommit=True, options="-c check_function_bodies=off") as connection:
        source = None
        for step in listed(planned):
            if step["source"] != source:
                source = step["source"]
                connection.execute("set role guard_owner" if source.startswith("sql/") else "reset role")
            connection.execute(step["statement"].replace("set local role", "set role").encode())

    # all but the tables of the migration tool, and what it and the ledger keep in tables
    execute(applied, "drop table guard._yoyo_migration, guard._yoyo_log, guard._yoyo_version, guard.yoyo_lock")
    assert schema(planned) == schema(applied)


def test_nothing_is_changed(legacy: str) -> None:
    before = schema(legacy), rows(legacy)
    assert listed(legacy)
    assert (schema(legacy), rows(legacy)) == before


def test_nothing_more_to_do(adopted: str, database: str, guard: RunGuard) -> None:
    assert listed(adopted) == []
    assert listed(database) == []
    assert guard(adopted, "plan").stdout == "Nothing to do: the database is as the files say.\n"


def test_rights_to_read_are_enough(legacy: str, guard: RunGuard) -> None:
    execute(legacy, "create role plan_reader login", "grant select on all tables in schema public to plan_reader")
    try:
        read_only = make_conninfo(legacy, user="plan_reader", options="-c default_transaction_read_only=on")
        shown = guard(read_only, "plan", "--json")
        assert shown.returncode == 2, shown.stderr
        assert json.loads(shown.stdout)["steps"] == listed(legacy)
        obstacles = {obstacle["what"]: obstacle["fix"] for obstacle in json.loads(shown.stdout)["obstacles"]}
        assert obstacles["plan_reader may not create tables and indexes in schema public"] == (
            "Have its owner run: grant create on schema public to plan_reader."
        )
    finally:
        execute(legacy, "drop owned by plan_reader", "drop role plan_reader")


def test_shown_with_sizes(legacy: str, guard: RunGuard) -> None:
    shown = guard(legacy, "plan").stdout
    assert "migrations/0005.application-columns.sql\n  insert into guard.provenance" in shown
    assert "    ACCESS EXCLUSIVE on public.calls: about 1000 rows, 416 kB\n" in shown
    assert shown.splitlines()[-7:] == [
        "table                lock                  ",
        "public.appointments  ACCESS EXCLUSIVE      ",
        "public.appointments  SHARE ROW EXCLUSIVE   ",
        "public.appointments  SHARE UPDATE EXCLUSIVE",
        "public.calls         ACCESS EXCLUSIVE      ",
        "public.calls         SHARE ROW EXCLUSIVE   ",
        "public.calls         SHARE UPDATE EXCLUSIVE",
    ]


def test_only_what_is_pending_is_listed(adopted: str, project: Path) -> None:
    file = project / "sql" / "functions" / "ladder.sql"
    file.write_text(file.read_text().replace("'Whether a call is", "'Whether, by hash, a call is"))
    assert {step["source"] for step in listed(adopted)} == {"sql/functions/ladder.sql"}
    before = catalog(adopted)
    listed(adopted)
    assert catalog(adopted) == before


def test_what_a_file_no_longer_provides_is_listed(adopted: str, project: Path) -> None:
    file = project / "sql" / "functions" / "ladder.sql"
    file.write_text(file.read_text().replace("-- provides: function guard.in_rollout(bigint, integer)\n", ""))
    (dropped,) = [step["statement"] for step in listed(adopted) if step["source"] == "obsolete"]
    assert dropped == "drop function if exists guard.in_rollout(bigint, integer)"


def test_what_is_in_the_way_of_apply(legacy: str, guard: RunGuard) -> None:
    free = guard(legacy, "plan", "--json")
    assert (free.returncode, json.loads(free.stdout)["obstacles"]) == (0, [])
    execute(
        legacy,
        "create function app_direction() returns trigger language plpgsql as 'begin return new; end'",
        "create trigger before_insert_call_set_direction before insert on calls"
        " for each row execute function app_direction()",
    )
    taken = guard(legacy, "plan", "--app-timezone", "Mars/Olympus")
    assert taken.returncode == 2
    assert taken.stdout.splitlines()[-3:] == [
        "guard apply would refuse:",
        "  Mars/Olympus is not a time zone that the server knows. Use a name of pg_timezone_names: Europe/Berlin.",
        "  guard needs names that something else has: trigger before_insert_call_set_direction on public.calls. "
        "Rename or drop what has them.",
    ]


def test_zone_and_orphans(adopted: str, tmp_path: Path) -> None:
    text = (PROJECT / "sql" / "checks" / "missing_direction.sql").read_text()
    (tmp_path / "missing_way.sql").write_text(text.replace("missing_direction", "missing_way"))
    apply(adopted, own_rules=tmp_path)
    with psycopg.connect(adopted, autocommit=True) as connection:
        pruned = plan.steps(connection, app_timezone="Europe/Berlin", prune=True)
        for step in pruned:
            connection.execute(step["statement"].encode())
        assert [(step["source"], step["statement"]) for step in pruned if step["source"] == "setting"] == [
            ("setting", "select guard.set_setting('app_timezone', 'Europe/Berlin')")
        ]
        assert 'delete from guard."rules" where "rule" = \'missing_way\'' in [step["statement"] for step in pruned]
        assert plan.steps(connection, app_timezone="Europe/Berlin") == []
