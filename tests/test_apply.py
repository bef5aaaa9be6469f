"""guard apply: on nothing and on an existing database, again, upgraded, against locks, killed anywhere."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors

from guard import install, locks
from guard.errors import GuardError, LockTimeoutError
from tests.catalog import MIGRATIONS, apply, catalog, execute, query, rollback, rows, schema
from tests.databases import PROJECT
from tests.processes import WAITING, invoke, start, transaction, wait_until, writer

if TYPE_CHECKING:
    from tests.databases import MakeDatabase, RunGuard

pytestmark = pytest.mark.slow

INDEX = "guard_appointments_call_id"


def test_empty_database(make_database: MakeDatabase, guard: RunGuard) -> None:
    dsn = make_database()
    applied = guard(dsn, "apply")
    assert applied.returncode == 0, applied.stderr
    assert "applied migration 0001.roles" in applied.stdout
    assert "applied sql/triggers/calls.sql" in applied.stdout
    assert "put the constraint guard_missing_direction in force" in applied.stdout
    assert query(dsn, "select distinct mode from guard.rules") == [("correct",)]
    assert guard(dsn, "verify").returncode == 0


def test_existing_database(legacy: str, guard: RunGuard) -> None:
    before = rows(legacy)
    applied = guard(legacy, "apply")
    assert applied.returncode == 0, applied.stderr
    assert rows(legacy) == before
    assert query(legacy, "select distinct mode from guard.rules") == [("observe",)]
    assert query(legacy, "select conname from pg_constraint where conname like 'guard%'") == []
    assert guard(legacy, "verify").returncode == 0


@pytest.mark.parametrize("made", ["database", "adopted"])
def test_again_does_nothing(made: str, request: pytest.FixtureRequest, guard: RunGuard) -> None:
    dsn = request.getfixturevalue(made)
    before = catalog(dsn)
    runs = query(dsn, "select id, finished_at from guard.apply_runs")
    again = guard(dsn, "apply")
    assert (again.returncode, again.stdout) == (0, "Nothing to do: the database is as the files say.\n")
    assert catalog(dsn) == before
    assert query(dsn, "select id, finished_at from guard.apply_runs") == runs


@pytest.mark.parametrize("made", ["database", "adopted"])
def test_apply_after_rollback_equals_apply(made: str, request: pytest.FixtureRequest) -> None:
    dsn = request.getfixturevalue(made)
    before = catalog(dsn)
    rollback(dsn, everything=True)
    apply(dsn)
    assert catalog(dsn) == before


def test_time_zone_is_set_once(legacy: str, guard: RunGuard) -> None:
    apply(legacy, app_timezone="Europe/Berlin")
    assert query(legacy, "select guard.setting('app_timezone')") == [("Europe/Berlin",)]
    assert guard(legacy, "apply", "--app-timezone", "Europe/Berlin").stdout.startswith("Nothing to do")


def test_unknown_time_zone_changes_nothing(legacy: str, guard: RunGuard) -> None:
    before = schema(legacy)
    refused = guard(legacy, "apply", "--app-timezone", "Mars/Olympus")
    assert refused.returncode == 1
    assert "Mars/Olympus is not a time zone" in refused.stderr
    assert schema(legacy) == before


# --- upgrades ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 7, 9, 11])
def test_upgrade_from_the_first_migrations(count: int, legacy: str, adopted: str, project: Path) -> None:
    aside = project / "aside"
    (aside / "migrations").mkdir(parents=True)
    later = [f"migrations/{id_}.{suffix}" for id_ in MIGRATIONS[count:] for suffix in ("sql", "rollback.sql")]
    for name in ("sql", *later):
        (project / name).rename(aside / name)
    assert len(apply(legacy)) == count

    for name in ("sql", *later):
        (aside / name).rename(project / name)
    apply(legacy)
    assert catalog(legacy) == catalog(adopted)


def test_upgrade_from_older_texts(legacy: str, adopted: str, project: Path) -> None:
    def amend(path: str, old: str, new: str) -> None:
        file = project / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    # a parameter of another name, a function that a view of another file uses, one more column, one more trigger
    amend("sql/functions/ladder.sql", "in_rollout(p_key bigint", "in_rollout(p_id bigint")
    amend("sql/functions/ladder.sql", "hashint8extended(p_key", "hashint8extended(p_id")
    amend(
        "sql/functions/time.sql",
        "-- provides",
        "-- provides: function guard.outdated()\n-- provides",
    )
    with (project / "sql/functions/time.sql").open("a") as file:
        file.write("create function guard.outdated() returns text language sql as $$ select 'x' $$;\n")
    amend(
        "sql/checks/missing_direction.sql",
        "as row_id\n",
        "as row_id,\n    guard.outdated() as outdated\n",
    )
    amend(
        "sql/triggers/calls.sql",
        "-- provides",
        "-- provides: trigger public.calls before_delete_call_outdated\n-- provides",
    )
    with (project / "sql/triggers/calls.sql").open("a") as file:
        file.write(
            "create trigger before_delete_call_outdated before delete on public.calls"
            " for each row execute function guard.call_begin_write();\n"
        )
    apply(legacy)
    assert catalog(legacy) != catalog(adopted)

    shutil.rmtree(project / "sql")
    shutil.copytree(PROJECT / "sql", project / "sql")
    done = apply(legacy)
    assert "dropped function guard.outdated()" in done
    assert catalog(legacy) == catalog(adopted)

    # and back: what cannot be replaced is made anew
    rollback(legacy)
    assert query(legacy, "select distinct outdated from guard.missing_direction") == [("x",)]
    apply(legacy)
    assert catalog(legacy) == catalog(adopted)


# --- locks ------------------------------------------------------------------------------------------------------------


def test_writers_pass_while_a_reader_is_in_the_way(legacy: str, adopted: str) -> None:
    with transaction(legacy, "select count(*) from calls"):
        process = start(legacy, "apply")
        wait_until(legacy, WAITING, process)
        with psycopg.connect(legacy, autocommit=True) as writer:
            writer.execute("set lock_timeout = '1s'")
            for call in range(1, 40):
                writer.execute("update calls set updated_at = updated_at where id = %s", (call,))
                time.sleep(0.02)
        wait_until(legacy, WAITING, process)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 0, output + error
    assert catalog(legacy) == catalog(adopted)


def test_reader_that_stays_is_named(legacy: str, adopted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "ATTEMPTS", 2)
    with transaction(legacy, "select count(*) from calls where from_number <> '+4915112345678'") as reader:
        stopped = invoke(legacy, "apply")
        assert stopped.exit_code == 1
        assert stopped.stderr.count("\n") == 1
        assert "migration 0005.application-columns: no lock after 2 attempts" in stopped.stderr
        assert f"Blocked by pid {reader.info.backend_pid} (postgres, idle in transaction" in stopped.stderr
        assert "where from_number <> ***" in stopped.stderr
        assert "4915112345678" not in stopped.stderr
        assert "Run the same command again" in stopped.stderr
    apply(legacy)
    assert catalog(legacy) == catalog(adopted)


@pytest.mark.parametrize(
    ("query_text", "shown"),
    [
        ("select 'it''s', 12345", "select ***, ***"),
        (r"select E'it\'s Ann', 1", "select E***, 1"),
        ("select $$Ann's$$, $1", "select ***, $1"),
        ("select $x$Ann$x$, 'cut o", "select ***, ***"),
        ("select +491511234567", "select ***"),
    ],
)
def test_blocking_query_is_masked(query_text: str, shown: str) -> None:
    assert locks.masked(query_text) == shown


def test_index_build_waits_for_an_old_snapshot_and_is_resumed(
    legacy: str, adopted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "ATTEMPTS", 1)
    monkeypatch.setattr("guard.migrations.CONCURRENT_TIMEOUT_MS", 300)
    with transaction(legacy, "set transaction isolation level repeatable read", "select 1"):
        with pytest.raises(LockTimeoutError, match=r"0008\.index-appointments-call: no lock"):
            apply(legacy)
        assert query(legacy, f"select indisvalid from pg_index where indexrelid = '{INDEX}'::regclass") == [(False,)]
    done = apply(legacy)
    assert done[0] == "applied migration 0008.index-appointments-call"
    assert catalog(legacy) == catalog(adopted)


def test_only_a_lock_timeout_is_retried(legacy: str) -> None:
    attempts = 0

    def divide() -> None:
        nonlocal attempts
        attempts += 1
        session.worker.execute("select 1 / 0")

    with install.exclusive(legacy) as session, pytest.raises(GuardError, match=r"a step: division by zero \[22012\]"):
        session.step("a step", divide)
    assert attempts == 1


def test_lock_timeout_is_retried_until_the_lock_is_there(legacy: str) -> None:
    attempts = 0

    def lock() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            reader.rollback()
        session.worker.execute("lock table public.calls")

    with transaction(legacy, "select from calls") as reader, install.exclusive(legacy) as session:
        session.step("a step", lock)
        assert attempts == 3
    with pytest.raises(errors.UndefinedTable), install.exclusive(legacy) as session:
        session.worker.execute("select from not_there")


def test_two_at_once(legacy: str, adopted: str, guard: RunGuard) -> None:
    with transaction(legacy, "select from calls"):
        first = start(legacy, "apply")
        wait_until(legacy, WAITING, first)
        second = guard(legacy, "apply")
        assert second.returncode == 1
        assert second.stderr.startswith("guard: Another guard command is changing this database (pid ")
        assert second.stderr.count("\n") == 1
    output, error = first.communicate(timeout=60)
    assert first.returncode == 0, output + error
    assert catalog(legacy) == catalog(adopted)


def test_lock_row_that_a_crash_left_does_not_matter(adopted: str) -> None:
    execute(adopted, "insert into guard.yoyo_lock (locked, ctime, pid) values (1, now(), 1)")
    rollback(adopted, to="0011.period")
    execute(adopted, "insert into guard.yoyo_lock (locked, ctime, pid) values (1, now(), 1)")
    assert "applied migration 0012.index-appointments-period" in apply(adopted)


# --- crashes ----------------------------------------------------------------------------------------------------------

#: Makes the n-th DDL command of guard's sleep. It counts in a sequence, which no rollback takes back.
STUMBLE = """
create schema stumble;
create sequence stumble.count;
create function stumble.sleep() returns event_trigger language plpgsql security definer as $$
begin
    -- dropping an index concurrently must be the first thing that its transaction does
    if current_setting('application_name') = 'guard' and (tg_event, tg_tag) <> ('ddl_command_start', 'DROP INDEX') then
        if nextval('stumble.count') = {n} then
            perform pg_sleep(600);
        end if;
    end if;
end
$$;
create event trigger stumble on {event} execute function stumble.sleep();
"""
SLEEPING = "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')"


def kill_at(dsn: str, event: str, n: int, *arguments: str) -> None:
    """Run a guard command and kill it in its n-th DDL command."""
    execute(dsn, STUMBLE.format(n=n, event=event))
    process = start(dsn, *arguments)
    wait_until(dsn, SLEEPING, process)
    process.kill()
    process.wait()
    # the server would notice within a second that its client is gone
    execute(
        dsn,
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = current_database() and application_name = 'guard'",
        "drop event trigger stumble",
        "drop schema stumble cascade",
    )


def ddl_commands(dsn: str, event: str, *arguments: str) -> int:
    execute(dsn, STUMBLE.format(n=0, event=event))
    process = start(dsn, *arguments)
    output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    count: int = query(dsn, "select last_value from stumble.count")[0][0]
    execute(dsn, "drop event trigger stumble", "drop schema stumble cascade")
    return count


@pytest.mark.parametrize("made", ["empty", "legacy"])
@pytest.mark.parametrize("event", ["ddl_command_start", "ddl_command_end"])
def test_killed_anywhere_then_applied_again(
    made: str, event: str, request: pytest.FixtureRequest, make_database: MakeDatabase
) -> None:
    template = "template1" if made == "empty" else request.getfixturevalue("legacy_template")
    undisturbed = make_database(template)
    total = ddl_commands(undisturbed, event, "apply")
    expected = catalog(undisturbed)
    for n in range(1, total + 1, total // 6):
        dsn = make_database(template)
        kill_at(dsn, event, n, "apply")
        apply(dsn)
        assert catalog(dsn) == expected, f"killed in DDL command {n} of {total}"
        unfinished = query(dsn, "select id from guard.apply_runs where finished_at is null")
        assert unfinished == []


@pytest.mark.parametrize("event", ["ddl_command_start", "sql_drop"])
def test_killed_anywhere_then_rolled_back_again(
    event: str, legacy: str, adopted_template: str, make_database: MakeDatabase, tmp_path: Path, guard: RunGuard
) -> None:
    expected = schema(legacy)
    total = ddl_commands(make_database(adopted_template), event, "rollback", "--all", "--export-to", str(tmp_path))
    for n in range(1, total + 1, max(total // 6, 1)):
        folder = tmp_path / str(n)
        folder.mkdir()
        arguments = ("rollback", "--all", "--export-to", str(folder))
        dsn = make_database(adopted_template)
        execute(
            dsn,
            "update guard.rules set mode = 'correct' where rule = 'missing_direction'",
            "update calls set direction = null where id = 10",
        )
        kill_at(dsn, event, n, *arguments)
        again = guard(dsn, *arguments)
        assert again.returncode == 0, again.stderr
        assert schema(dsn) == expected, f"killed in DDL command {n} of {total}"
        saved = "".join(file.read_text() for file in folder.iterdir())
        assert '"alert_type": "missing_direction"' in saved, f"killed in DDL command {n} of {total}"
        assert ("the values before every correction" in again.stderr) or len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("migration", ["0008.index-appointments-call", "0012.index-appointments-period"])
def test_killed_while_an_index_is_built(migration: str, legacy: str, adopted: str) -> None:
    apply(legacy)
    rollback(legacy, to=MIGRATIONS[MIGRATIONS.index(migration) - 1])
    with transaction(legacy, "insert into appointments (company_id) values (1)"):
        process = start(legacy, "apply")
        wait_until(legacy, WAITING, process)
        process.kill()
        process.wait()
    # the server ends the build by itself, although nobody waits for it any more
    wait_until(
        legacy,
        "select not exists (select from pg_stat_activity"
        " where datname = current_database() and application_name = 'guard')",
    )
    apply(legacy)
    assert catalog(legacy) == catalog(adopted)


def test_end_of_the_process_ends_its_statement(legacy: str) -> None:
    with transaction(legacy, "insert into appointments (company_id) values (1)"):
        process = start(legacy, "apply")
        wait_until(legacy, WAITING, process)
        process.kill()
        process.wait()
        wait_until(legacy, f"select not ({WAITING})")


@pytest.mark.parametrize("made", ["invalid", "missing"])
def test_index_that_was_lost_is_found_and_rebuilt(made: str, adopted: str, guard: RunGuard) -> None:
    before = catalog(adopted)
    if made == "invalid":
        execute(adopted, f"update pg_index set indisvalid = false where indexrelid = '{INDEX}'::regclass")
    else:
        execute(adopted, f"drop index {INDEX}")
    found = guard(adopted, "verify", "--json")
    assert found.returncode == 2
    kind = "invalid_index" if made == "invalid" else "missing"
    assert f'"kind": "{kind}"' in found.stdout
    assert INDEX in found.stdout
    assert apply(adopted) == ["repaired migration 0008.index-appointments-call"]
    assert catalog(adopted) == before
    assert guard(adopted, "verify").returncode == 0


def test_writers_while_it_is_applied(legacy: str) -> None:
    """No write fails, deadlocks or waits for long while guard is installed."""
    with writer(legacy) as failures:
        apply(legacy)
    assert failures == []


def test_writers_while_it_is_applied_again(adopted: str) -> None:
    execute(
        adopted,
        "update guard.rules set mode = 'correct'",
        "update guard.objects set checksum = 'older' where kind <> 'migration'",
    )
    with writer(adopted) as failures:
        apply(adopted)
    assert failures == []
    assert query(adopted, "select place, message from guard.faults") == []
