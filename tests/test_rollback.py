"""guard rollback: the last apply, down to a migration, or everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from guard.errors import GuardError
from tests.catalog import MIGRATIONS, apply, catalog, execute, query, rollback, rows, schema
from tests.processes import invoke, writer

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


def test_tables_that_guard_made_go_if_they_are_empty(database: str, make_database: MakeDatabase) -> None:
    execute(database, "insert into companies (id, name) values (1, 'One')")
    before = rows(database)
    assert "table public.companies holds rows and stays" in rollback(database, everything=True)
    assert query(database, "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1") == [
        ("companies",),
        ("companies_id_seq",),
        ("companies_pkey",),
    ]
    assert query(database, "select count(*) from companies")[0][0] == before["companies"][0]

    execute(database, "drop table companies")
    assert schema(database) == schema(make_database())


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


def test_extension_that_was_there_before_stays(legacy: str) -> None:
    execute(legacy, "create extension btree_gist")
    before = schema(legacy)
    apply(legacy)
    rollback(legacy, everything=True)
    assert schema(legacy) == before


def test_view_of_an_operators_own_is_not_dropped_on_the_quiet(adopted: str, legacy: str, tmp_path: Path) -> None:
    execute(adopted, "create view public.mine as select entity_id from guard.missing_direction")
    refused = invoke(adopted, "rollback", "--all", "--export-to", str(tmp_path))
    assert refused.exit_code == 1
    message = refused.stderr.splitlines()[-1]
    assert "view public.mine depends on view guard.missing_direction" in message
    assert query(adopted, "select count(*) from public.mine") == [(10,)]

    execute(adopted, "drop view public.mine")
    rollback(adopted, everything=True)
    assert schema(adopted) == schema(legacy)


@pytest.mark.parametrize("mode", ["observe", "correct"])
def test_writers_while_it_is_rolled_back(mode: str, adopted: str, legacy: str) -> None:
    execute(adopted, f"update guard.rules set mode = '{mode}'")
    with writer(adopted) as failures:
        rollback(adopted, everything=True)
    assert failures == []
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
