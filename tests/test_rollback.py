"""guard rollback: the last apply, down to a migration, or everything."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from guard import locks
from guard.errors import GuardError
from tests.catalog import MIGRATIONS, apply, catalog, execute, query, rollback, rows, schema
from tests.databases import PROJECT
from tests.processes import WAITING, invoke, start, transaction, wait_until, writer
from tests.sessions import two_sessions

if TYPE_CHECKING:
    from tests.databases import MakeDatabase, RunGuard

pytestmark = pytest.mark.slow


def test_all_leaves_the_schema_and_the_rows_as_they_were(legacy: str, adopted: str, tmp_path: Path) -> None:
    rollback(adopted, everything=True)
    assert schema(adopted) == schema(legacy)
    assert rows(adopted) == rows(legacy)


def test_corrections_stay_and_the_values_before_them_are_saved(adopted: str, tmp_path: Path, guard: RunGuard) -> None:
    for rule in ("missing_direction", "appointment_made_mismatch"):
        assert guard(adopted, "rules", "set", rule, "--mode", "correct").returncode == 2
    execute(
        adopted,
        "update calls set direction = null where id = 10",
        "update calls set session_outcome = 'abandoned' where id = 41",
        "update calls set booking_failure_reason = 'unrelated' where id = 12",
    )
    corrected = rows(adopted)
    done = guard(adopted, "rollback", "--all", "--export-to", str(tmp_path))
    assert done.returncode == 0, done.stderr

    (file,) = tmp_path.iterdir()
    assert done.stderr == f"Guard's rows, with the values before every correction, are saved in {file}.\n"
    assert file.stat().st_mode & 0o777 == 0o600
    saved = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"rules", "settings", "audit_log", "object_log", "provenance"} <= {line["table"] for line in saved}
    alerts = {
        (line["row"]["alert_type"], line["row"]["entity_id"]): line["row"]["metadata"]["changes"]
        for line in saved
        if line["table"] == "data_consistency_alerts"
    }
    assert alerts == {
        ("missing_direction", 10): [{"column": "direction", "after": "inbound"}],
        ("appointment_made_mismatch", 41): [
            {"column": "session_outcome", "before": "abandoned", "after": "appointment_booked"}
        ],
    }

    assert rows(adopted) == corrected
    assert query(adopted, "select direction from calls where id = 10") == [("inbound",)]


def test_rows_are_saved_before_a_part_is_rolled_back_too(adopted: str, tmp_path: Path, guard: RunGuard) -> None:
    with psycopg.connect(adopted, autocommit=True) as connection:
        connection.execute("select guard.queue_review(1, 'asked')")

    done = guard(adopted, "rollback", "--to", "0012.index-appointments-period", "--export-to", str(tmp_path))

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in next(tmp_path.iterdir()).read_text().splitlines()]
    assert [line["row"]["reason"] for line in lines if line["table"] == "manual_review_queue"] == ["asked"]


def test_export_is_told_in_json_too(adopted: str, tmp_path: Path, guard: RunGuard) -> None:
    done = guard(adopted, "rollback", "--all", "--export-to", str(tmp_path), "--json")
    assert json.loads(done.stdout)["export"] == str(next(tmp_path.iterdir()))
    assert json.loads(done.stdout)["done"][-1] == "dropped schema guard"


def test_nothing_is_rolled_back_without_its_export(adopted: str, tmp_path: Path) -> None:
    before = catalog(adopted)
    assert invoke(adopted, "rollback", "--all", "--export-to", str(tmp_path / "missing")).exit_code == 1
    assert catalog(adopted) == before


def tables(dsn: str) -> list[str]:
    return [name for (name,) in query(dsn, "select tablename from pg_tables where schemaname = 'public' order by 1")]


def test_tables_that_guard_made_go_if_they_are_empty(database: str, make_database: MakeDatabase) -> None:
    execute(database, "insert into companies (id, name) values (1, 'One')")
    assert "table public.companies holds rows and stays" in rollback(database, everything=True)
    assert tables(database) == ["companies"]
    assert query(database, "select name from companies") == [("One",)]

    execute(database, "drop table companies")
    assert schema(database) == schema(make_database())


def test_tables_that_stay_keep_those_that_they_refer_to(database: str) -> None:
    execute(
        database,
        "insert into companies (id, name) values (1, 'One')",
        "insert into calls (id, company_id) values (1, 1)",
        "create table shifts (staff_id bigint references staff (id))",
    )
    done = rollback(database, everything=True)
    assert tables(database) == ["calls", "companies", "customers", "shifts", "staff"]
    assert [line for line in done if "stays" in line] == [
        "table public.calls holds rows and stays",
        "table public.staff stays: "
        "constraint shifts_staff_id_fkey on table public.shifts depends on table public.staff",
        "table public.customers stays: "
        "constraint calls_customer_id_fkey on table public.calls depends on table public.customers",
        "table public.companies holds rows and stays",
    ]
    apply(database)
    assert query(database, "select id, company_id from calls") == [(1, 1)]
    rollback(database, everything=True)
    assert tables(database) == ["calls", "companies", "customers", "shifts", "staff"]


def test_row_that_comes_as_its_table_is_dropped(database: str, tmp_path: Path) -> None:
    """Either it is written and the table stays, or the table is gone."""
    with psycopg.connect(database) as writing:
        writing.execute("insert into services (id, company_id, name) select 1, id, 'Cut' from companies")
        writing.execute("insert into companies (id, name) values (1, 'One')")
        process = start(database, "rollback", "--to", "0003.btree-gist", "--export-to", str(tmp_path))
        wait_until(database, WAITING, process)
        writing.commit()
    output, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "table public.companies holds rows and stays" in output
    assert query(database, "select name from companies") == [("One",)]


def test_columns_that_guard_added_go_and_no_others(legacy: str) -> None:
    execute(
        legacy,
        "alter table calls drop column booking_details, drop column requires_manual_processing, drop column direction",
        "alter table appointments drop column source, drop column updated_at",
        "alter table calls add column guard_note text",
    )
    before = schema(legacy)
    apply(legacy)
    assert query(
        legacy, "select relation, name from guard.provenance where kind = 'column' order by relation, name"
    ) == [
        ("public.appointments", "guard_corrections"),
        ("public.appointments", "source"),
        ("public.appointments", "updated_at"),
        ("public.calls", "booking_details"),
        ("public.calls", "direction"),
        ("public.calls", "guard_corrections"),
        ("public.calls", "requires_manual_processing"),
    ]
    execute(legacy, "update calls set direction = 'inbound'")
    rollback(legacy, everything=True)
    assert schema(legacy) == before


def test_column_that_the_application_dropped_meanwhile(adopted: str, legacy: str) -> None:
    for dsn in (adopted, legacy):
        execute(dsn, "alter table calls drop column call_successful")
    rollback(adopted, everything=True)
    assert schema(adopted) == schema(legacy)


def test_extension_that_was_there_before_stays(legacy: str) -> None:
    execute(legacy, "create extension btree_gist")
    before = schema(legacy)
    apply(legacy)
    rollback(legacy, everything=True)
    assert schema(legacy) == before


#: What an operator may have built on guard: how it is made, what is said of it, how it is removed.
DEPENDENTS = {
    "view of a rule": (
        "create view mine as select entity_id from guard.missing_direction",
        "view public.mine depends on view guard.missing_direction",
        "drop view mine",
    ),
    "views of a view": (
        "create view outer_calls as select * from calls; create view of_outer as select id from outer_calls",
        "view public.outer_calls depends on column guard_corrections of table public.calls; "
        "view public.of_outer depends on view public.outer_calls",
        "drop view of_outer, outer_calls",
    ),
    "materialized view": (
        "create materialized view rules as select rule from guard.rules",
        "materialized view public.rules depends on table guard.rules",
        "drop materialized view rules",
    ),
    "function": (
        "create function zone() returns text begin atomic select guard.setting('app_timezone'); end",
        "function public.zone() depends on function guard.setting(text)",
        "drop function zone",
    ),
    "trigger": (
        "create trigger mine before insert on staff for each row execute function guard.call_set_direction()",
        "trigger mine on table public.staff depends on function guard.call_set_direction()",
        "drop trigger mine on staff",
    ),
    "foreign key": (
        "create table notes (incident_id bigint references guard.incidents (id))",
        "constraint notes_incident_id_fkey on table public.notes depends on table guard.incidents",
        "drop table notes",
    ),
    "policy": (
        "create policy mine on calls using (guard_corrections is null)",
        "policy mine on table public.calls depends on column guard_corrections of table public.calls",
        "drop policy mine on calls",
    ),
    "publication": (
        "create publication mine for table calls (id, guard_corrections)",
        "publication of table public.calls in publication mine"
        " depends on column guard_corrections of table public.calls",
        "drop publication mine",
    ),
    "column": (
        "alter table staff add watched guard.rules",
        "column watched of table public.staff depends on type guard.rules",
        "alter table staff drop watched",
    ),
    "exclusion": (
        "create table rooms (id bigint, exclude using gist (id guard.gist_int8_ops with =))",
        "index public.rooms_id_excl depends on operator class guard.gist_int8_ops for access method gist",
        "drop table rooms",
    ),
    "table in guard's schema": (
        "create table guard.notes (id bigint)",
        "table guard.notes depends on schema guard",
        "drop table guard.notes",
    ),
    "view in guard's schema": (
        "create view guard_bi.mine as select 1 as one",
        "view guard_bi.mine depends on schema guard_bi",
        "drop view guard_bi.mine",
    ),
}


def test_all_that_depends_on_guard_is_named_before_the_first_change(adopted: str, legacy: str, tmp_path: Path) -> None:
    execute(adopted, *(made for made, _, _ in DEPENDENTS.values()))
    before = catalog(adopted)
    refused = invoke(adopted, "rollback", "--all", "--export-to", str(tmp_path))
    assert refused.exit_code == 1
    assert refused.stderr.startswith("guard: Guard cannot be rolled back: ")
    assert refused.stderr.endswith(
        ". Nothing was changed. Drop what depends on guard, or let it do without, then run the same command again.\n"
    )
    said = refused.stderr.removeprefix("guard: Guard cannot be rolled back: ").split(". Nothing")[0].split("; ")
    assert sorted(said) == sorted("; ".join(said for _, said, _ in DEPENDENTS.values()).split("; "))
    assert catalog(adopted) == before
    assert list(tmp_path.iterdir()) == []

    execute(adopted, *(removed for _, _, removed in DEPENDENTS.values()))
    rollback(adopted, everything=True)
    assert schema(adopted) == schema(legacy)


def test_dependents_that_come_later_are_named_too(adopted: str, tmp_path: Path) -> None:
    text = (PROJECT / "sql" / "checks" / "missing_direction.sql").read_text()
    (tmp_path / "missing_way.sql").write_text(text.replace("missing_direction", "missing_way"))
    apply(adopted, own_rules=tmp_path)
    execute(adopted, "create view mine as select entity_id from guard.missing_way")
    refused = invoke(adopted, "apply", "--prune")
    assert refused.exit_code == 1
    assert "(view public.mine depends on view guard.missing_way) [2BP01]. Drop what depends on it" in refused.stderr
    assert "CASCADE" not in refused.stderr


def test_what_does_not_stand_in_the_way_stays(adopted: str) -> None:
    """What a part of guard is needed for stops only the rollback of that part."""
    execute(
        adopted,
        "create view ids as select id, company_id from calls",
        "create view zones as select value from guard.settings",
        "create table notes (incident_id bigint references guard.incidents (id))",
    )
    rollback(adopted, to="0030.incidents")
    with pytest.raises(
        GuardError, match=r": constraint notes_incident_id_fkey on table public\.notes depends on .*s\. N"
    ):
        rollback(adopted, to="0020.circuit-breaker")
    execute(adopted, "drop table notes")
    rollback(adopted, to="0002.ledger")
    execute(adopted, "drop view zones")
    rollback(adopted, everything=True)
    assert query(adopted, "select count(*) from ids") == [(1000,)]


def saved(folder: Path) -> list[Any]:
    """Every line of the exports in a folder."""
    return [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines()]


def test_no_value_is_lost_that_is_corrected_meanwhile(adopted: str, tmp_path: Path, guard: RunGuard) -> None:
    """By triggers, and by functions that are called."""
    execute(adopted, "update guard.rules set mode = 'correct'")
    corrected: set[int] = set()
    stop = threading.Event()

    def write(statement: str) -> None:
        with psycopg.connect(adopted, autocommit=True) as connection:
            while not stop.is_set():
                try:
                    corrected.update(id_ for (id_,) in connection.execute(statement.encode()))
                except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName):
                    time.sleep(0.01)

    claim = """
        with written as (
            insert into calls (company_id, appointment_made, session_outcome) values (1, true, 'abandoned')
            returning id, session_outcome
        )
        select id from written where session_outcome = 'appointment_booked'
    """
    take_back = """
        select c.id from calls as c cross join lateral guard.rollback_booking(c.id, 'test')
        where c.id = (select max(id) from calls where appointment_made)
    """
    threads = [threading.Thread(target=write, args=(statement,)) for statement in (claim, take_back)]
    for thread in threads:
        thread.start()
    try:
        wait_until(adopted, "select count(*) > 20 from guard.data_consistency_alerts")
        done = guard(adopted, "rollback", "--all", "--export-to", str(tmp_path))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert done.returncode == 0, done.stderr
    assert len(corrected) > 20
    alerts = {line["row"]["entity_id"] for line in saved(tmp_path) if line["table"] == "data_consistency_alerts"}
    assert corrected - alerts == set()


def test_transactions_that_still_write_are_waited_for(adopted: str, tmp_path: Path) -> None:
    """One that has called a function of guard's, and a function that was begun before all of them went."""
    change = "select guard.set_setting('app_timezone', 'Europe/Berlin')"
    with two_sessions(adopted) as (first, second):
        first.begin()
        assert first.run(change) == "done"
        second.start(change)
        assert second.is_blocked()
        process = start(adopted, "rollback", "--all", "--export-to", str(tmp_path))
        wait_until(adopted, "select to_regprocedure('guard.set_setting(text, text)') is null", process)
        assert list(tmp_path.iterdir()) == []
        assert first.run("rollback") == "done"
        assert second.finish() == "done"
        output, error = process.communicate(timeout=60)
    assert process.returncode == 0, output + error
    settings = {line["row"]["name"]: line["row"]["value"] for line in saved(tmp_path) if line["table"] == "settings"}
    assert settings["app_timezone"] == "Europe/Berlin"


def test_who_keeps_on_writing_is_named(adopted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "CONCURRENT_TIMEOUT_MS", 300)
    arguments = ("rollback", "--all", "--export-to", str(tmp_path))
    with transaction(adopted, "create table unrelated ()"):
        with transaction(adopted, "select guard.set_setting('app_timezone', 'Europe/Berlin')") as writing:
            refused = invoke(adopted, *arguments)
            assert refused.exit_code == 1
            assert f"may still write guard's rows: pid {writing.info.backend_pid} (" in refused.stderr
            assert list(tmp_path.iterdir()) == []
        assert invoke(adopted, *arguments).exit_code == 0


@pytest.mark.parametrize("mode", ["observe", "correct"])
def test_writers_while_it_is_rolled_back(mode: str, adopted: str, legacy: str) -> None:
    execute(adopted, f"update guard.rules set mode = '{mode}'")
    with writer(adopted) as failures:
        rollback(adopted, everything=True)
    assert failures == []
    assert schema(adopted) == schema(legacy)


def test_index_whose_build_was_cut_short_goes_too(adopted: str, legacy: str) -> None:
    rollback(adopted, to="0007.rules-and-alerts")
    with transaction(adopted, "insert into appointments (company_id) values (1)"):
        process = start(adopted, "apply")
        wait_until(adopted, WAITING, process)
        process.kill()
        process.wait()
    wait_until(adopted, f"select not ({WAITING})")
    assert query(adopted, "select indisvalid from pg_index where indexrelid = 'guard_appointments_call_id'::regclass")
    rollback(adopted, everything=True)
    assert schema(adopted) == schema(legacy)


def test_to_a_migration(adopted: str) -> None:
    before = catalog(adopted)
    done = rollback(adopted, to="0007.rules-and-alerts")
    undone = reversed(MIGRATIONS[MIGRATIONS.index("0007.rules-and-alerts") + 1 :])
    assert [line for line in done if "migration" in line] == [f"rolled back migration {id_}" for id_ in undone]
    assert query(adopted, "select kind, identity from guard.objects where kind <> 'migration'") == []
    assert query(adopted, "select tgname from pg_trigger where tgname ~ 'call|appointment' and not tgisinternal") == []
    with pytest.raises(GuardError, match="Every apply has been undone already"):
        rollback(adopted)
    apply(adopted)
    assert catalog(adopted) == before


def test_to_the_last_migration_changes_nothing(adopted: str) -> None:
    before = catalog(adopted)
    assert rollback(adopted, to=MIGRATIONS[-1]) == []
    assert catalog(adopted) == before


@pytest.mark.parametrize(
    ("made", "arguments", "said"),
    [
        ("adopted", ("--to", "0099.unknown"), "Migration 0099.unknown is not applied here. Applied are: 0001.roles, "),
        ("adopted", (), "There is only one apply to undo"),
        ("adopted", ("--all", "--to", "0001.roles"), "--to and --all exclude each other"),
        ("legacy", (), "Guard is not installed in this database."),
        ("legacy", ("--all",), "Guard is not installed in this database."),
    ],
)
def test_what_cannot_be_rolled_back(
    made: str, arguments: tuple[str, ...], said: str, request: pytest.FixtureRequest
) -> None:
    dsn = request.getfixturevalue(made)
    before = schema(dsn)
    refused = invoke(dsn, "rollback", *arguments)
    assert refused.exit_code == 1
    assert said in refused.stderr
    assert schema(dsn) == before
