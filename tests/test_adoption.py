"""Existing tables: what guard does to them on the first day, which it refuses, and as whom it can be installed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import port_for
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guard import migrations, verify
from guard import rules as registry
from guard.errors import GuardError, UnsuitableDatabaseError
from tests.catalog import apply, execute, query, rollback, rows, schema
from tests.databases import PROJECT, Databases, temporary_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import MakeDatabase, RunGuard

pytestmark = pytest.mark.slow

ZONES = ("America/Los_Angeles", "Asia/Kolkata")

DIRTY = [
    "insert into calls (company_id, session_outcome, appointment_made) values (1, 'abandoned', true)",
    "insert into calls (company_id, session_outcome, appointment_made) values (1, 'appointment_booked', false)",
    "insert into calls (company_id, customer_id, appointment_link_status) values (1, 1, 'linked')",
    "update calls set direction = null, appointment_link_status = 'linked', appointment_made = false where id % 7 = 0",
    "insert into appointments (company_id, call_id, source)"
    " values (2, 1, 'retell_webhook'), (1, null, 'retell_webhook')",
    "insert into appointments (company_id, calcom_v2_booking_id, staff_id, starts_at, ends_at)"
    " select 1, 'bk_40', 1, '2027-01-04 08:00', '2027-01-04 18:00' from generate_series(1, 3)",
    "update appointments set call_id = call_id + 1 where id % 5 = 0",
    "delete from appointments where id % 11 = 0",
    "delete from calls where id % 13 = 0",
]

SOUND = "\nok: files, ledger and catalog agree, and every rule does what its mode says.\n"


def verified(dsn: str) -> verify.Verification:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return verify.run(connection)


# --- the first day ----------------------------------------------------------------------------------------------------


def test_observed_writes_end_as_they_would_without_guard(legacy: str, adopted: str) -> None:
    """Nothing is rejected, and no value is another one."""
    for dsn in (legacy, adopted):
        execute(dsn, *DIRTY)
    assert rows(adopted) == rows(legacy)
    recorded: dict[str, int] = dict(
        query(adopted, "select alert_type, count(*) from guard.data_consistency_alerts group by 1")
    )
    assert set(recorded) >= {
        "appointment_made_mismatch",
        "session_outcome_mismatch",
        "missing_direction",
        "inconsistent_customer_link",
        "inconsistent_link_status",
        "orphaned_appointment",
        "tenant_mismatch",
        "duplicate_booking",
        "overlapping_appointment",
    }
    assert query(adopted, "select count(*) from guard.data_consistency_alerts where auto_corrected") == [(0,)]
    assert query(adopted, "select place, message from guard.faults") == []


def test_application_without_any_rights_on_guard(adopted: str) -> None:
    execute(
        adopted,
        "create role adoption_app login",
        "grant select, insert, update, delete on all tables in schema public to adoption_app",
        "grant usage on all sequences in schema public to adoption_app",
    )
    try:
        application = make_conninfo(adopted, user="adoption_app")
        for mode in ("observe", "correct"):
            execute(adopted, f"update guard.rules set mode = '{mode}'")
            execute(application, *DIRTY)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            query(application, "select * from guard.data_consistency_alerts")
        assert query(adopted, "select place, message from guard.faults") == []
    finally:
        execute(adopted, "drop owned by adoption_app", "drop role adoption_app")


@pytest.mark.slow
def test_copied_rows_and_restored_dumps(adopted: str, make_database: MakeDatabase, tmp_path: Path) -> None:
    """A dump of a guarded database restores into another one."""
    file = tmp_path / "dump"
    subprocess.run(["pg_dump", "--format=custom", f"--file={file}", f"--dbname={adopted}"], check=True)
    restored = make_database()
    subprocess.run(["pg_restore", "--exit-on-error", f"--dbname={restored}", str(file)], check=True)
    assert schema(restored) == schema(adopted)
    assert rows(restored) == rows(adopted)
    assert verified(restored)["ok"]


# --- what cannot be adopted -------------------------------------------------------------------------------------------

UNSUITABLE = {
    "uuid ids": (
        [
            "drop table appointments",
            "alter table calls drop column id",
            "alter table calls add column id uuid default gen_random_uuid()",
        ],
        "public.calls.id is uuid, and guard needs bigint",
    ),
    "flag that is a number": (
        ["alter table calls drop column appointment_made", "alter table calls add column appointment_made smallint"],
        "public.calls.appointment_made is smallint, and guard needs boolean",
    ),
    "status that is an enum": (
        [
            "create type call_outcome as enum ('abandoned')",
            "alter table calls drop column session_outcome, add column session_outcome call_outcome",
        ],
        "public.calls.session_outcome is public.call_outcome, and guard needs text",
    ),
    "status that is a domain": (
        [
            "create domain link_state as text check (value in ('linked', 'unlinked'))",
            "alter table calls drop column appointment_link_status, add column appointment_link_status link_state",
        ],
        "public.calls.appointment_link_status is public.link_state, and guard needs text",
    ),
    "words that a CHECK refuses": (
        [
            "update calls set appointment_link_status = null, session_outcome = null",
            "alter table calls add constraint outcomes"
            " check (session_outcome in ('appointment_booked', 'creation_failed', 'abandoned'))",
            "alter table calls add check (appointment_link_status ~ '^(un)?linked$') not valid",
            # these say nothing against them: too little is known, or nothing is wrong
            "alter table calls add check (session_outcome <> 'lost'), add check (length(session_outcome) < 40)",
            "alter table calls add check (session_outcome <> 'creation_failed' or status = 'ended')",
        ],
        "the constraint outcomes refuses appointment_removed in public.calls.session_outcome; "
        "the constraint calls_appointment_link_status_check refuses creation_failed in "
        "public.calls.appointment_link_status",
    ),
    "words that are too long": (
        ["alter table calls alter customer_link_method type varchar(10) using null"],
        "public.calls.customer_link_method is character varying(10), too short for phone_match",
    ),
    "no company": (["alter table calls drop column company_id"], "public.calls has no column company_id"),
    "view": (
        ["alter table calls rename to phone_calls", "create view calls as select * from phone_calls"],
        "public.calls is not an ordinary table",
    ),
    "partitioned table": (
        ["alter table calls rename to old", "create table calls (like old) partition by range (created_at)"],
        "public.calls is not an ordinary table",
    ),
    "times of two types": (
        ["alter table appointments alter ends_at type timestamptz"],
        "public.appointments.starts_at and ends_at are of different types",
    ),
    "table to refer to that is a view": (
        [
            "drop table appointments",
            "alter table staff rename to people",
            "create view staff as select * from people",
        ],
        "public.staff is not an ordinary table",
    ),
    "table to refer to that has other ids": (
        [
            "drop table appointments, staff",
            "create table staff (id uuid primary key)",
        ],
        "public.staff.id is uuid, and guard needs bigint",
    ),
}


@pytest.mark.parametrize(("changes", "said"), UNSUITABLE.values(), ids=UNSUITABLE.keys())
def test_unsuitable_tables_are_left_alone(changes: list[str], said: str, legacy: str) -> None:
    execute(legacy, *changes)
    with pytest.raises(UnsuitableDatabaseError) as refused:
        apply(legacy)
    assert refused.value.message == f"Guard cannot be installed here: {said}. Nothing was changed."
    assert query(legacy, "select to_regnamespace('guard')") == [(None,)]


TAKEN = {
    "trigger": (
        [
            "create function set_call_direction() returns trigger language plpgsql"
            " as $$ begin new.direction := 'outbound'; return new; end $$",
            "create trigger before_insert_call_set_direction before insert on calls"
            " for each row execute function set_call_direction()",
        ],
        ["trigger before_insert_call_set_direction on public.calls"],
    ),
    "index": (["create index guard_calls_booking_id on calls (booking_id)"], ["index public.guard_calls_booking_id"]),
    "constraints": (
        [
            "alter table calls add constraint guard_missing_direction check (direction <> 'sideways')",
            "create index guard_duplicate_booking on staff (company_id)",
        ],
        ["constraint guard_missing_direction on public.calls", "index public.guard_duplicate_booking"],
    ),
    "column": (
        ["alter table appointments add column guard_corrections jsonb"],
        ["column guard_corrections of public.appointments"],
    ),
    "schemas": (
        ["create schema guard", "create table guard.shifts (id bigint)", "create schema guard_bi"],
        ["schema guard", "schema guard_bi"],
    ),
    "empty schema": (["create schema guard"], ["schema guard"]),
}


@pytest.mark.parametrize(("changes", "named"), TAKEN.values(), ids=TAKEN.keys())
def test_names_that_are_taken_are_left_alone(changes: list[str], named: list[str], legacy: str) -> None:
    execute(legacy, *changes)
    before = schema(legacy)
    with pytest.raises(UnsuitableDatabaseError) as refused:
        apply(legacy)
    assert refused.value.message == (
        "Guard cannot be installed here: guard needs names that something else has: "
        f"{', '.join(named)}. Nothing was changed."
    )
    assert refused.value.fix == "Rename or drop what has them. Then run guard apply again."
    assert schema(legacy) == before
    with pytest.raises(GuardError, match="Guard is not installed in this database"):
        rollback(legacy, everything=True)
    assert schema(legacy) == before


def test_trigger_that_was_renamed_works_on_and_stays(legacy: str) -> None:
    execute(
        legacy,
        *TAKEN["trigger"][0],
        "alter trigger before_insert_call_set_direction on calls rename to app_set_direction",
    )
    before = schema(legacy)
    apply(legacy)
    apply(legacy)
    execute(legacy, "insert into calls (id, company_id) values (90001, 1)")
    assert query(legacy, "select direction from calls where id = 90001") == [("outbound",)]
    rollback(legacy, everything=True)
    assert schema(legacy) == before


def test_name_of_a_rule_of_ones_own_that_is_taken(adopted: str, tmp_path: Path) -> None:
    """Also where guard is installed already, a new name must be free."""
    text = (PROJECT / "sql" / "checks" / "missing_direction.sql").read_text()
    (tmp_path / "missing_way.sql").write_text(text.replace("missing_direction", "missing_way"))
    execute(adopted, "alter table calls add constraint guard_missing_way check (direction <> 'sideways')")
    with pytest.raises(UnsuitableDatabaseError, match=r"constraint guard_missing_way on public\.calls"):
        apply(adopted, own_rules=tmp_path)
    execute(adopted, "alter table calls drop constraint guard_missing_way")
    assert apply(adopted, own_rules=tmp_path) == ["applied rules/missing_way.sql"]


def test_everything_in_the_way_is_told_at_once(legacy: str, guard: RunGuard) -> None:
    execute(
        legacy,
        "alter table calls drop column company_id",
        "alter table appointments alter status drop default, alter status type integer using 1",
    )
    refused = guard(legacy, "apply")
    assert refused.returncode == 1
    assert refused.stderr == (
        "guard: Guard cannot be installed here: public.calls has no column company_id; "
        "public.appointments.status is integer, and guard needs text. Nothing was changed. "
        "Add what is missing. Change the column's type. Then run guard apply again.\n"
    )


def test_tables_of_others(legacy: str) -> None:
    execute(
        legacy,
        "create role adoption_dba login createrole",
        "grant create on schema public to adoption_dba",
        "grant select on all tables in schema public to adoption_dba",
    )
    name = query(legacy, "select current_database()")[0][0]
    try:
        with pytest.raises(UnsuitableDatabaseError) as refused:
            apply(make_conninfo(legacy, user="adoption_dba"))
        for table in ("calls", "appointments", "companies"):
            assert f"postgres owns public.{table}, and adoption_dba is not a member of it" in refused.value.message
        assert "adoption_dba may not create a schema in this database" in refused.value.message
        assert query(legacy, "select to_regnamespace('guard')") == [(None,)]
    finally:
        execute(legacy, f"revoke all on database {name} from adoption_dba", "drop owned by adoption_dba")
        execute(legacy, "drop role adoption_dba")


# --- tables as they are found -----------------------------------------------------------------------------------------


def test_smaller_tables(make_database: MakeDatabase) -> None:
    """Integer ids, no times, no foreign keys: what is missing is added, what is there is left as it is."""
    dsn = make_database()
    execute(
        dsn,
        "create table companies (id serial primary key)",
        "create table calls (id serial primary key, company_id integer, appointment_made boolean)",
        "create table appointments (id serial primary key, company_id integer)",
        "insert into companies default values",
        "insert into calls (company_id, appointment_made) values (1, true)",
        "insert into appointments (company_id) values (1)",
    )
    before = schema(dsn)
    apply(dsn)
    assert query(dsn, "select mode, count(*) from guard.rules group by 1") == [("observe", 11)]
    assert verified(dsn)["ok"]
    assert query(dsn, "select rule, entity_id from guard.missing_appointment") == [("missing_appointment", 1)]
    execute(
        dsn, "update guard.rules set mode = 'correct'", "insert into appointments (company_id, call_id) values (1, 1)"
    )
    assert query(dsn, "select appointment_link_status, session_outcome from calls") == [
        ("linked", "appointment_booked")
    ]
    rollback(dsn, everything=True)
    assert schema(dsn) == before


def test_tables_that_are_made_start_at_correct_and_found_ones_at_observe(make_database: MakeDatabase) -> None:
    dsn = make_database()
    execute(
        dsn,
        "create table companies (id bigint primary key)",
        "create table calls (id bigint primary key, company_id bigint)",
    )
    apply(dsn)
    assert query(dsn, "select entity_type, mode, count(*) from guard.rules group by 1, 2 order by 1") == [
        ("appointment", "correct", 4),
        ("call", "observe", 7),
    ]
    assert query(dsn, "select rule from guard.rules where guard.constraint_state(rule) = 'in force' order by 1") == [
        ("duplicate_booking",),
        ("orphaned_appointment",),
        ("overlapping_appointment",),
    ]
    assert verified(dsn)["ok"]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("zoned", [False, True], ids=["timestamp", "timestamptz"])
def test_times_that_triggers_write(zoned: bool, zone: str, adopted: str, legacy: str) -> None:
    """They are in the application's zone, whatever the zone of the session that writes."""
    dsn = adopted
    if zoned:
        dsn = legacy
        columns = ("created_at", "updated_at", "appointment_linked_at")
        execute(dsn, "alter table calls " + ", ".join(f"alter {name} type timestamptz" for name in columns))
        apply(dsn)
    execute(
        dsn,
        "select guard.set_setting('app_timezone', 'Europe/Berlin')",
        "update guard.rules set mode = 'correct'",
    )
    session = make_conninfo(dsn, options=f"-c timezone={zone}")
    local = "" if zoned else " at time zone 'Europe/Berlin'"
    off = f"abs(extract(epoch from {{}}{local} - now())) < 60"

    execute(session, "insert into appointments (company_id, call_id, source) values (1, 21, 'phone')")
    linked = ", ".join(off.format(name) for name in ("appointment_linked_at", "updated_at"))
    assert query(session, f"select {linked} from calls where id = 21") == [(True, True)]
    assert query(session, "show timezone") == [(zone,)]

    execute(session, "delete from appointments where call_id = 21")
    assert query(session, f"select {off.format('updated_at')} from calls where id = 21") == [(True,)]

    execute(session, "update calls set direction = null where id = 40")
    assert query(session, "select detected_at between now() - interval '1 minute' and now()"
                 " from guard.data_consistency_alerts where alert_type = 'missing_direction'") == [(True,)]  # fmt: skip


def assert_instant(dsn: str) -> None:
    """Call 101 was written at eight o'clock UTC."""
    question = "select occurred_at = '2026-07-01 08:00+00' from guard.missing_direction where entity_id = 101"
    for zone in ZONES:
        assert query(make_conninfo(dsn, options=f"-c timezone={zone}"), question) == [(True,)]


def test_instants_of_local_timestamps(legacy: str) -> None:
    apply(legacy, app_timezone="Europe/Berlin")
    execute(legacy, "update calls set created_at = '2026-07-01 10:00', updated_at = null where id = 101")
    assert_instant(legacy)


def test_instants_of_timestamps_with_a_zone(legacy: str) -> None:
    execute(legacy, "alter table calls alter created_at type timestamptz, alter updated_at type timestamptz")
    apply(legacy, app_timezone="Europe/Berlin")
    execute(legacy, "update calls set created_at = '2026-07-01 10:00+02', updated_at = null where id = 101")
    assert_instant(legacy)


def test_instants_where_guard_added_a_column(legacy: str) -> None:
    """One column is local and the other is not."""
    execute(legacy, "alter table calls drop column updated_at")
    apply(legacy, app_timezone="Europe/Berlin")
    execute(legacy, "update calls set created_at = '2026-07-01 10:00' where id = 101")
    assert_instant(legacy)


def test_grace_is_counted_from_the_right_instant(legacy: str) -> None:
    apply(legacy, app_timezone="Asia/Kolkata")
    written = "update calls set created_at = now() at time zone 'Asia/Kolkata' - interval '{}', updated_at = null"
    seen = "select count(*) from guard.missing_appointment where entity_id = 3"
    for zone in ZONES:
        session = make_conninfo(legacy, options=f"-c timezone={zone}")
        execute(session, written.format("0 seconds") + " where id = 3")
        assert query(session, seen) == [(0,)]
        execute(session, written.format("4 seconds") + " where id = 3")
        assert query(session, seen) == [(1,)]


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Databases]:
    """A server of its own: roles belong to a whole cluster."""
    with temporary_server() as executor:
        yield Databases(executor)


@pytest.fixture
def owned(cluster: Databases) -> Iterator[str]:
    """The legacy database, owned by the login `owner`, in a cluster that has no other role of guard's."""
    dsn = cluster.create()
    name = cluster.name(dsn)
    execute(dsn, "create role owner login", f"alter database {name} owner to owner")
    owner = make_conninfo(dsn, user="owner", options="-c client_min_messages=error")
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("set legacy.calls = 1000")
        for file in ("schema.sql", "load.sql"):
            connection.execute((PROJECT / "examples" / "legacy" / file).read_bytes())
    yield owner
    cluster.drop(dsn)
    server = make_conninfo(dsn, dbname="postgres")
    for (role,) in query(server, "select rolname from pg_roles where rolname ~ '^(guard_|owner$|admin$)'"):
        execute(server, f"drop role {role}")


def admin(dsn: str, *statements: str) -> None:
    execute(make_conninfo(dsn, user="postgres"), *statements)


def guard_roles(dsn: str) -> list[str]:
    return [name for (name,) in query(dsn, "select rolname from pg_roles where rolname ~ '^guard_' order by 1")]


@pytest.mark.slow
def test_owner_that_may_create_roles(owned: str, guard: RunGuard, tmp_path: Path) -> None:
    admin(owned, "alter role owner createrole")
    before = schema(owned), rows(owned)
    applied = guard(owned, "apply")
    assert applied.returncode == 0, applied.stderr
    assert guard_roles(owned) == sorted(migrations.ROLES)
    assert guard(owned, "plan").stdout.startswith("Nothing to do")
    assert guard(owned, "audit").returncode == 2
    assert guard(owned, "verify").stdout.endswith(SOUND)

    execute(owned, "update calls set direction = 'inbound' where direction is null")
    assert guard(owned, "rules", "set", "missing_direction", "--mode", "correct").returncode == 0
    execute(owned, "insert into calls (company_id) values (1)", "update calls set direction = null where id = 10")
    assert query(owned, "select count(*) from guard.data_consistency_alerts where auto_corrected") == [(2,)]
    execute(owned, "alter table calls disable trigger before_insert_call_set_direction")
    assert guard(owned, "verify").returncode == 2
    assert guard(owned, "apply").stdout == "restored sql/triggers/calls.sql\n"

    undone = guard(owned, "rollback", "--all", "--export-to", str(tmp_path))
    assert undone.returncode == 0, undone.stderr
    assert schema(owned) == before[0]
    assert guard_roles(owned) == []


@pytest.mark.slow
def test_roles_that_an_admin_made(owned: str, guard: RunGuard, tmp_path: Path) -> None:
    before = schema(owned)
    refused = guard(owned, "apply")
    assert refused.returncode == 1
    (said,) = re.findall("owner may not create roles, and there is no ([^;.]+)", refused.stderr)
    assert said.split(", ") == list(migrations.ROLES)
    planned = guard(owned, "plan")
    assert planned.returncode == 2
    assert f"  owner may not create roles, and there is no {said}. Have an administrator run: " in planned.stdout

    (made,) = re.findall(r"or: (create role [^.]+); grant guard_owner to owner\.", refused.stderr)
    admin(owned, *made.split("; "))
    refused = guard(owned, "apply")
    assert refused.returncode == 1
    assert "owner is not a member of guard_owner, and may not grant it to itself" in refused.stderr
    assert schema(owned) == before

    admin(owned, "grant guard_owner to owner")
    applied = guard(owned, "apply")
    assert applied.returncode == 0, applied.stderr
    assert guard(owned, "verify").stdout.endswith(SOUND)
    assert guard(owned, "rollback", "--all", "--export-to", str(tmp_path)).returncode == 0
    assert schema(owned) == before
    assert guard_roles(owned) == sorted(migrations.ROLES), "what an admin made stays"


@pytest.mark.slow
def test_member_of_the_owner(owned: str, guard: RunGuard) -> None:
    admin(owned, "create role admin login createrole", "grant owner to admin")
    applied = guard(make_conninfo(owned, user="admin"), "apply")
    assert applied.returncode == 0, applied.stderr
    assert guard(make_conninfo(owned, user="admin"), "verify").stdout.endswith(SOUND)
    assert query(owned, "select distinct tableowner from pg_tables where schemaname = 'public'") == [("owner",)]
    rollback(make_conninfo(owned, user="admin"), everything=True)


@pytest.mark.slow
def test_role_that_inherits_nothing(owned: str) -> None:
    admin(owned, "alter role owner createrole noinherit")
    with pytest.raises(UnsuitableDatabaseError, match="owner does not inherit the rights of the roles"):
        apply(owned)


@pytest.mark.slow
def test_missing_role_is_found(owned: str) -> None:
    admin(owned, "alter role owner createrole")
    apply(owned)
    admin(owned, "drop owned by guard_monitor", "drop role guard_monitor")
    found = [finding for finding in verified(owned)["findings"] if finding["kind"] == "missing_role"]
    assert found == [{"kind": "missing_role", "object": "guard_monitor", "fix": "create role guard_monitor nologin"}]


@pytest.mark.slow
def test_row_security_without_the_right_to_pass_it(owned: str) -> None:
    admin(owned, "alter role owner createrole")
    apply(owned)
    assert verified(owned)["ok"]
    execute(owned, "alter table calls enable row level security")
    assert ("row_security", "table calls") in {(f["kind"], f["object"]) for f in verified(owned)["findings"]}


@pytest.mark.slow
def test_two_databases_of_one_cluster(owned: str, cluster: Databases) -> None:
    """Roles are shared; the last database that uses one decides."""
    admin(owned, "alter role owner createrole")
    other = cluster.create()
    before = schema(other)
    try:
        apply(owned)
        apply(other)
        rollback(owned, everything=True)
        assert guard_roles(owned) == sorted(migrations.ROLES)
        assert verified(other)["ok"]
        rollback(other, everything=True)
        assert schema(other) == before
    finally:
        cluster.drop(other)


@pytest.mark.slow
def test_hardened_schema(owned: str) -> None:
    """Where only named roles may use schema public."""
    admin(owned, "alter role owner createrole", "revoke all on schema public from public")
    admin(owned, "grant all on schema public to owner")
    before = schema(owned)
    apply(owned)
    assert verified(owned)["ok"]
    execute(owned, "update calls set direction = null where id = 10")
    assert query(owned, "select place, message from guard.faults") == []
    registry.move(owned, "inconsistent_link_status", "correct", 100)
    execute(owned, "insert into appointments (company_id, call_id) values (1, 21)")
    assert query(owned, "select appointment_made from calls where id = 21") == [(True,)]
    rollback(owned, everything=True)
    assert schema(owned) == before


@pytest.fixture
def standby(cluster: Databases, owned: str, tmp_path: Path) -> Iterator[str]:
    """The database `owned` with guard applied, on a hot standby."""
    admin(owned, "alter role owner createrole")
    apply(owned)
    port = port_for.select_random()
    with tempfile.TemporaryDirectory(prefix="guard-standby-") as folder:
        source = make_conninfo(owned, user="postgres", dbname="postgres", options="")
        backup = ["pg_basebackup", "--checkpoint=fast", "--write-recovery-conf", f"--pgdata={folder}/data"]
        subprocess.run([*backup, f"--dbname={source}"], check=True)
        if os.geteuid() == 0:
            subprocess.run(["chown", "--recursive", "postgres:postgres", folder], check=True)
        pg_ctl = [str(Path(__file__).with_name("pg_ctl-as-postgres")), f"--pgdata={folder}/data", "--wait"]
        options = f"-p {port} -k {folder}"
        subprocess.run([*pg_ctl, f"--options={options}", f"--log={folder}/log", "start"], check=True, stdout=PIPE)
        try:
            yield make_conninfo(owned, port=port)
        finally:
            subprocess.run([*pg_ctl, "--mode=immediate", "stop"], check=True, stdout=PIPE)


@pytest.mark.slow
def test_standby(standby: str, guard: RunGuard) -> None:
    verified = guard(standby, "verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.startswith("note: The probe was left out: the server is a standby.\n")
    assert "\nok: files, ledger and catalog agree. Rules not tried on a bad row: " in verified.stdout
    assert guard(standby, "audit").returncode == 2
    planned = guard(standby, "plan")
    assert planned.returncode == 2
    assert planned.stdout.startswith("Nothing to do")
    assert planned.stdout.endswith("\n  the server is a standby. Connect to the primary.\n")
    assert guard(standby, "rules", "list").returncode == 0
    refused = guard(standby, "apply")
    assert refused.returncode == 1
    assert "the server is a standby. Nothing was changed. Connect to the primary." in refused.stderr
