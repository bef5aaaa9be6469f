"""guard verify: what may have been broken by hand, and the probe. What the ledger finds is in test_ledger.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guard import verify
from tests.catalog import apply, catalog, execute, query, rollback, rows
from tests.processes import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import MakeDatabase, RunGuard


#: What is noted of a database in which no job has run.
NOTES = [verify.NO_SCHEDULER]
SOUND = {"ok": True, "findings": [], "notes": NOTES, "unprobed": []}


def run(dsn: str) -> verify.Verification:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return verify.run(connection)


def findings(dsn: str) -> set[tuple[str, str]]:
    return {(finding["kind"], finding["object"]) for finding in run(dsn)["findings"]}


@pytest.mark.slow
@pytest.mark.parametrize("made", ["database", "adopted"])
def test_sound(made: str, request: pytest.FixtureRequest, guard: RunGuard) -> None:
    dsn = request.getfixturevalue(made)
    assert run(dsn) == SOUND
    verified = guard(dsn, "verify")
    assert verified.returncode == 0
    assert (
        verified.stdout
        == f"note: {NOTES[0]}\nok: files, ledger and catalog agree, and every rule does what its mode says.\n"
    )
    assert json.loads(guard(dsn, "verify", "--json").stdout) == SOUND


@pytest.mark.parametrize("made", ["database", "adopted"])
def test_sound_in_every_mode(made: str, request: pytest.FixtureRequest) -> None:
    """The rows of the probe are refused, repaired, recorded or let through, as the mode says."""
    dsn = request.getfixturevalue(made)
    for mode in ("off", "observe", "correct", "enforce"):
        execute(dsn, f"update guard.rules set mode = '{mode}' where enforceable or '{mode}' <> 'enforce'")
        assert run(dsn) == SOUND, mode


@pytest.mark.slow
def test_sound_at_any_rollout(adopted: str) -> None:
    for mode in ("correct", "enforce"):
        for percent in (0, 1, 50):
            execute(adopted, f"update guard.rules set mode = '{mode}', rollout_pct = {percent} where enforceable")
            assert run(adopted)["ok"], (mode, percent)


@pytest.mark.parametrize("made", ["database", "adopted"])
def test_nothing_is_left_behind(made: str, request: pytest.FixtureRequest) -> None:
    dsn = request.getfixturevalue(made)
    counters = "select schemaname, sequencename, last_value from pg_sequences where schemaname = 'public' order by 1, 2"
    kept = "select (select count(*) from guard.data_consistency_alerts), (select count(*) from guard.pending_checks)"
    before = catalog(dsn), rows(dsn), query(dsn, counters), query(dsn, kept)
    assert run(dsn)["ok"]
    assert (catalog(dsn), rows(dsn), query(dsn, counters), query(dsn, kept)) == before


def test_never_installed(legacy: str, make_database: MakeDatabase) -> None:
    for dsn in (legacy, make_database()):
        found = invoke(dsn, "verify", "--json")
        assert found.exit_code == 2
        assert json.loads(found.stdout)["findings"] == [
            {"kind": "pending", "object": "guard is not installed", "fix": "guard apply"}
        ]


@pytest.mark.parametrize("last", ["0001.roles", "0002.ledger", "0006.application-grants", "0011.period"])
def test_installed_in_part(last: str, adopted: str) -> None:
    rollback(adopted, to=last)
    found = invoke(adopted, "verify", "--json")
    assert found.exit_code == 2, found.stderr
    kinds = {
        (finding["kind"], finding["object"].split(" ")[0].split("/")[0])
        for finding in json.loads(found.stdout)["findings"]
    }
    assert kinds == {("pending", "migration"), ("pending", "sql")}


BROKEN = {
    "not_validated": (
        ["alter table calls add constraint guard_missing_direction check (direction is not null) not valid"],
        {("not_validated", "constraint guard_missing_direction on calls")},
    ),
    "missing_extension": (
        ["drop extension btree_gist cascade"],
        {
            ("missing_extension", "btree_gist"),
            ("missing", "index public.guard_appointments_staff_period"),
        },
    ),
    "unknown time zone": (
        ["update guard.settings set value = 'Mars/Olympus' where name = 'app_timezone'"],
        {("time_zone", "setting app_timezone is 'Mars/Olympus'")},
    ),
    "time zone west of the application's": (
        ["update calls set created_at = localtimestamp + interval '2 hours' where id = 7"],
        {("time_zone", "the newest call was created 120 minutes from now")},
    ),
    "fault": (
        ["insert into guard.faults (place, errcode, message) values ('note_claims', '42P01', 'no [/b] table')"],
        {("fault", "1 faults of guard's own in the last day, the last one in note_claims: no [/b] table")},
    ),
    "stuck_intent": (
        [
            "insert into guard.booking_intents (key, call_id, request, request_hash, state, booking_id, updated_at)"
            " select 'k' || n, 1, '{}', '', s, 'b', timestamptz '2026-01-01 09:00+00' + n * interval '1 minute'"
            " from unnest('{remote_booked,started,failed}'::text[]) with ordinality as k (s, n)",
            "insert into guard.booking_intents (key, call_id, request, request_hash) values ('young', 1, '{}', '')",
        ],
        {("stuck_intent", "2 bookings that were begun have not come further, the oldest since 2026-01-01 09:01 UTC")},
    ),
    "probe": (
        [
            "create function undo() returns trigger language plpgsql as"
            " 'begin new.guard_corrections := null; return new; end'",
            "create trigger zz_undo before insert or update on calls for each row"
            " when (new.direction is null) execute function undo()",
        ],
        {
            (
                "probe",
                "rule missing_direction at observe: a bad row was let through, and should have been recorded",
            )
        },
    ),
}


@pytest.mark.parametrize(("changes", "found"), BROKEN.values(), ids=BROKEN.keys())
def test_broken(changes: list[str], found: set[tuple[str, str]], adopted: str) -> None:
    execute(adopted, *changes)
    assert findings(adopted) == found
    printed = invoke(adopted, "verify")
    assert (printed.exit_code, printed.stderr) == (2, "")
    assert "\nkind " in printed.stdout


#: What is done by hand to the tables that guard made, and what is found; guard apply takes it back.
ON_TABLES = {
    "constraint dropped": (
        ["alter table calls drop constraint guard_missing_direction"],
        ("missing", "constraint public.calls guard_missing_direction"),
    ),
    "constraint replaced": (
        [
            "alter table calls drop constraint guard_missing_direction",
            "alter table calls add constraint guard_missing_direction check (true)",
        ],
        ("drifted", "constraint public.calls guard_missing_direction"),
    ),
    "unique index dropped": (
        ["drop index guard_duplicate_booking"],
        ("missing", "index public.guard_duplicate_booking"),
    ),
    "unique index replaced": (
        [
            "drop index guard_duplicate_booking",
            "create index guard_duplicate_booking on appointments (calcom_v2_booking_id)",
        ],
        ("drifted", "index public.guard_duplicate_booking"),
    ),
    "exclude constraint dropped": (
        ["alter table appointments drop constraint guard_overlapping_appointment"],
        ("missing", "constraint public.appointments guard_overlapping_appointment"),
    ),
}


@pytest.mark.parametrize(("changes", "finding"), ON_TABLES.values(), ids=ON_TABLES.keys())
def test_constraint_changed_by_hand(changes: list[str], finding: tuple[str, str], database: str) -> None:
    before = catalog(database)
    execute(database, *changes)
    assert findings(database) == {finding}
    assert {found["fix"] for found in run(database)["findings"]} == {"guard apply"}
    rule = finding[1].rpartition("guard_")[2]
    assert apply(database) == [f"put the constraint guard_{rule} in force"]
    assert catalog(database) == before


def test_constraint_that_rows_stand_in_the_way_of(database: str) -> None:
    execute(
        database,
        "alter table calls drop constraint guard_missing_direction",
        "insert into companies (id, name) values (1, 'One')",
        "set session_replication_role = replica; insert into calls (id, company_id) values (1, 1)",
    )
    (found,) = run(database)["findings"]
    assert found == {
        "kind": "missing",
        "object": "constraint public.calls guard_missing_direction",
        "fix": "repair the 1 rows of guard.missing_direction that stand in its way, then guard apply",
    }
    left_out = "left out the constraint guard_missing_direction: 1 rows stand in the way, see guard.missing_direction"
    assert apply(database) == [left_out]
    execute(database, "update calls set direction = 'outbound'")
    assert apply(database) == ["put the constraint guard_missing_direction in force"]
    assert run(database)["ok"]


def test_index_changed_by_hand(adopted: str) -> None:
    before = catalog(adopted)
    execute(adopted, "drop index guard_calls_created_at", "create index guard_calls_created_at on calls (id)")
    (found,) = run(adopted)["findings"]
    assert found == {
        "kind": "drifted",
        "object": "index public.guard_calls_created_at",
        "fix": "drop index concurrently public.guard_calls_created_at, then guard apply",
    }
    execute(adopted, "drop index concurrently public.guard_calls_created_at")
    apply(adopted)
    assert catalog(adopted) == before
    assert run(adopted)["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_constraint_changed_on_a_table_that_was_found(replaced: bool, adopted: str, guard: RunGuard) -> None:
    execute(adopted, "update calls set direction = 'inbound' where direction is null")
    set_again = ("rules", "set", "missing_direction", "--mode", "correct")
    assert guard(adopted, *set_again).returncode == 0
    before = catalog(adopted)
    execute(adopted, "alter table calls drop constraint guard_missing_direction")
    if replaced:
        execute(adopted, "alter table calls add constraint guard_missing_direction check (true)")
    (found,) = run(adopted)["findings"]
    assert found == {
        "kind": "drifted" if replaced else "missing",
        "object": "constraint public.calls guard_missing_direction",
        "fix": "guard " + " ".join(set_again),
    }
    assert guard(adopted, *set_again).returncode == 0
    assert catalog(adopted) == before
    assert run(adopted)["ok"]


def test_old_fault_is_forgotten(adopted: str) -> None:
    execute(
        adopted,
        "insert into guard.faults (place, errcode, message, created_at)"
        " values ('note_claims', '42P01', 'no table', now() - interval '25 hours')",
    )
    assert run(adopted)["ok"]


def test_row_security_that_guard_is_subject_to(adopted: str) -> None:
    execute(adopted, "alter table calls enable row level security")
    assert run(adopted)["ok"]
    execute(adopted, "alter role guard_owner nobypassrls")
    try:
        assert findings(adopted) == {("row_security", "table calls")}
    finally:
        execute(adopted, "alter role guard_owner bypassrls")


def test_triggers_that_do_not_fire(adopted: str) -> None:
    """A role that replicates fires no trigger: the probe sees it, the catalog does not."""
    kinds = {kind for kind, _ in findings(make_conninfo(adopted, options="-c session_replication_role=replica"))}
    assert kinds == {"probe"}


def test_read_only_session_is_not_probed(adopted: str, guard: RunGuard) -> None:
    result = run(make_conninfo(adopted, options="-c default_transaction_read_only=on"))
    assert result["ok"]
    assert (len(result["unprobed"]), len(result["notes"])) == (11, 1 + len(NOTES))
    assert "read-only transaction" in result["notes"][0]


def test_as_a_monitor(adopted: str, guard: RunGuard) -> None:
    """A login of the monitoring role sees what is wrong; it may not write, not even on trial."""
    monitor = make_conninfo(adopted, options="-c role=guard_monitor")
    result = run(monitor)
    assert (result["ok"], len(result["unprobed"])) == (True, 11)
    assert result["notes"] == [
        "The probe was left out: guard_monitor may not write on trial; a member of guard_operator may.",
        *NOTES,
    ]
    assert "\nok: files, ledger and catalog agree. Rules not tried on a bad row: " in invoke(monitor, "verify").stdout
    execute(adopted, "drop trigger before_insert_call_set_direction on calls")
    assert findings(monitor) == {("missing", "trigger public.calls before_insert_call_set_direction")}


def test_as_an_operator(adopted: str, guard: RunGuard) -> None:
    """The probe needs rights on the application's tables as well, which guard does not give."""
    execute(adopted, "create role op login", "grant guard_operator to op")
    try:
        operator = make_conninfo(adopted, user="op")
        result = run(operator)
        assert (result["findings"], len(result["unprobed"])) == ([], 11)
        assert result["notes"][0].endswith("permission denied for table customers [42501]")
        execute(adopted, "grant select, insert, update on all tables in schema public to op")
        verified = guard(operator, "verify", "--json")
        assert (verified.returncode, json.loads(verified.stdout)) == (0, SOUND)
    finally:
        execute(adopted, "drop owned by op", "drop role op")


@pytest.mark.slow
def test_rules_that_rest_on_one_that_was_lowered(database: str, guard: RunGuard) -> None:
    assert guard(database, "rules", "set", "tenant_mismatch", "--mode", "enforce").returncode == 0
    lowered = guard(database, "rules", "set", "inconsistent_link_status", "--mode", "observe")
    assert lowered.returncode == 0
    assert lowered.stdout.splitlines()[1] == (
        "Two sessions at once may slip through tenant_mismatch as long as inconsistent_link_status stands below "
        "correct for 100 %."
    )
    assert findings(database) == {
        ("slips_through", "rule tenant_mismatch: two sessions at once, since inconsistent_link_status stands too low")
    }
    refused = guard(database, "rules", "set", "missing_appointment", "--mode", "enforce")
    assert refused.returncode == 1
    assert "[ZG015]. First: guard rules set inconsistent_link_status --mode correct" in refused.stderr


def test_columns_that_must_have_a_value(adopted: str) -> None:
    """What the application's own tables demand is given to the rows of the probe."""
    execute(
        adopted,
        "create table agents (id bigint primary key)",
        "insert into agents values (5)",
        "alter table calls add agent_id bigint not null default 5 references agents, add slug varchar(8) unique",
        "alter table calls alter agent_id drop default",
        "update calls set slug = id",
        "alter table calls alter slug set not null",
        "delete from appointments where starts_at is null",
        "alter table appointments alter starts_at set not null, alter ends_at set not null",
    )
    assert run(adopted) == SOUND


def test_what_keeps_the_probe_out_is_found(adopted: str) -> None:
    execute(adopted, "alter table calls add constraint positive check (id > 0)")
    result = run(adopted)
    assert (len(result["findings"]), len(result["unprobed"])) == (11, 11)
    first = result["findings"][0]
    assert (first["kind"], first["object"]) == (
        "probe",
        "rule appointment_made_mismatch at observe was not probed: the probe rows could not be written: "
        'new row for relation "calls" violates check constraint "positive" [23514]',
    )
    assert invoke(adopted, "verify").exit_code == 2


def test_own_table_is_probed_with_its_constraints(database: str) -> None:
    """With the unique index in force an insert is refused at any mode."""
    execute(database, "update guard.rules set mode = 'observe' where rule = 'duplicate_booking'")
    assert run(database)["ok"]
    execute(database, "drop index guard_duplicate_booking")
    assert run(database)["ok"]


def test_verify_needs_no_files_in_the_working_folder(
    adopted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: RunGuard
) -> None:
    monkeypatch.chdir(tmp_path)
    assert guard(adopted, "verify").returncode == 0
