"""guard rules: the ladder, the constraints that follow it, and rules of an operator's own."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from guard import audit, constraints, install, plan, verify
from guard import rules as registry
from guard.errors import GuardError
from tests.catalog import apply, catalog, execute, query, rollback
from tests.databases import PROJECT
from tests.processes import invoke, start, transaction, wait_until

if TYPE_CHECKING:
    from tests.databases import RunGuard

pytestmark = pytest.mark.slow

ALL = {
    "appointment_made_mismatch",
    "duplicate_booking",
    "inconsistent_customer_link",
    "inconsistent_link_status",
    "missing_appointment",
    "missing_direction",
    "orphaned_appointment",
    "overlapping_appointment",
    "recent_creation_failure",
    "session_outcome_mismatch",
    "tenant_mismatch",
}
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()
UNLINKED = "insert into appointments (company_id, calcom_v2_booking_id) values (1, '{}'), (1, '{}')"


def state(dsn: str, rule: str) -> tuple[str, int, str | None]:
    ((mode, rollout, constraint),) = query(
        dsn, "select mode, rollout_pct, guard.constraint_state(rule) from guard.rules where rule = %s", rule
    )
    return mode, rollout, constraint


def test_list(adopted: str) -> None:
    listed = json.loads(invoke(adopted, "rules", "list", "--json").stdout)
    assert {rule["rule"] for rule in listed} == ALL
    assert {(rule["mode"], rule["rollout_pct"]) for rule in listed} == {("observe", 100)}
    assert {rule["constraint"] for rule in listed} == {None, "absent"}
    assert [rule["severity"] for rule in listed] == sorted(
        (rule["severity"] for rule in listed), key=["critical", "warning", "info"].index
    )
    printed = invoke(adopted, "rules", "list").stdout
    assert all(rule in printed for rule in ALL)


def test_show(adopted: str) -> None:
    shown = json.loads(invoke(adopted, "rules", "show", "missing_appointment", "--json").stdout)
    assert (shown["errcode"], shown["grace_seconds"], shown["detection_window_seconds"]) == ("ZG103", 3.0, 3600.0)
    assert "Write the appointment in the transaction" in invoke(adopted, "rules", "show", "missing_appointment").stdout
    unknown = invoke(adopted, "rules", "show", "nonsense")
    assert (unknown.exit_code, unknown.stderr) == (
        1,
        "guard: There is no rule 'nonsense'. guard rules list shows them.\n",
    )


def test_mode_is_set_and_audited_where_rows_stand_in_the_way(adopted: str, guard: RunGuard) -> None:
    moved = guard(adopted, "rules", "set", "missing_direction", "--mode", "correct")
    assert moved.returncode == 2
    assert moved.stdout.splitlines() == [
        "missing_direction now stands at correct.",
        "10 rows stand in the way of its constraint guard_missing_direction, which was not installed. The view "
        "guard.missing_direction lists them; guard reconcile --rule missing_direction repairs what can be repaired. "
        "Then run this command again.",
    ]
    assert state(adopted, "missing_direction") == ("correct", 100, "absent")
    assert query(adopted, "select actor, action, object, before, after from guard.audit_log") == [
        (
            "postgres",
            "set_rule",
            "missing_direction",
            {"mode": "observe", "rollout_pct": 100},
            {"mode": "correct", "rollout_pct": 100},
        )
    ]


def test_constraint_follows_once_the_rows_are_repaired(adopted: str, guard: RunGuard) -> None:
    execute(adopted, "update calls set direction = 'inbound' where direction is null")
    moved = guard(adopted, "rules", "set", "missing_direction", "--mode", "enforce", "--json")
    assert moved.returncode == 0
    assert json.loads(moved.stdout) == {
        "rule": "missing_direction",
        "mode": "enforce",
        "rollout_pct": 100,
        "constraint": "in force",
        "violations": 0,
        "message": "Its constraint guard_missing_direction is in force.",
    }
    assert guard(adopted, "verify").returncode == 0
    with pytest.raises(errors.CheckViolation):
        query(
            make_conninfo(adopted, options="-c session_replication_role=replica"),
            "insert into calls (company_id) values (1) returning id",
        )


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_lowering_needs_no_constraint_to_go(mode: str, database: str) -> None:
    """A CHECK of guard's accepts what the trigger let through: the emergency stop takes no lock."""
    execute(database, "insert into companies (id, name) values (1, 'One')")
    with transaction(database, "select count(*) from calls"):
        result = registry.move(database, "missing_direction", mode, 100)
    assert (result["constraint"], result["message"]) == ("in force", None)
    execute(database, "insert into calls (company_id) values (1)")
    assert query(database, "select direction from calls") == [(None,)]


@pytest.mark.parametrize("rule", ["duplicate_booking", "overlapping_appointment"])
def test_index_goes_when_its_rule_is_lowered(rule: str, database: str) -> None:
    result = registry.move(database, rule, "observe", 100)
    assert result["message"] == f"Its constraint guard_{rule} was removed: it would refuse what the mode lets through."
    assert state(database, rule) == ("observe", 100, "absent")
    assert registry.move(database, rule, "correct", 50)["constraint"] == "absent"
    assert registry.move(database, rule, "correct", 100)["constraint"] == "in force"


def test_exclude_is_built_on_request_where_guard_found_the_table(adopted: str, guard: RunGuard) -> None:
    """Building it keeps readers out; the trigger refuses overlaps without it."""
    execute(adopted, "delete from appointments where id in (select entity_id from guard.overlapping_appointment)")
    execute(adopted, "analyze appointments")
    raised = ("rules", "set", "overlapping_appointment", "--mode", "enforce")
    with transaction(adopted, "select count(*) from appointments"):  # a reader that it would have to wait for
        moved = guard(adopted, *raised)
    assert (moved.returncode, state(adopted, "overlapping_appointment")) == (0, ("enforce", 100, "absent"))
    assert moved.stdout.splitlines()[1].startswith(
        "Its constraint guard_overlapping_appointment was not built, and the trigger looks instead. Building it keeps "
        "readers and writers out of public.appointments (about 429 rows, "
    )
    assert moved.stdout.endswith(
        ") until it is done: guard rules set overlapping_appointment --mode enforce --build-exclude\n"
    )
    assert guard(adopted, "verify").returncode == 0
    overlap = (
        "insert into appointments (company_id, staff_id, starts_at, ends_at)"
        " select 1, 1, '2035-01-01 09:00', '2035-01-01 10:00' from generate_series(1, 2)"
    )
    with pytest.raises(psycopg.Error) as refused:
        execute(adopted, overlap)
    assert refused.value.sqlstate == "ZG111"

    built = guard(adopted, *raised, "--build-exclude")
    assert (built.returncode, state(adopted, "overlapping_appointment")[2]) == (0, "in force")
    assert built.stderr.startswith(
        "Building the EXCLUDE constraint takes ACCESS EXCLUSIVE on public.appointments: about 429 rows, "
    )
    with pytest.raises(errors.ExclusionViolation):
        execute(adopted, overlap)
    assert guard(adopted, *raised).stdout.count("\n") == 1, "it is there"
    execute(adopted, "alter table appointments drop constraint guard_overlapping_appointment")
    (found,) = json.loads(guard(adopted, "verify", "--json").stdout)["findings"]
    assert found["fix"] == "guard rules set overlapping_appointment --mode enforce --build-exclude"


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(ALL))
def test_every_rung_and_back(rule: str, database: str) -> None:
    before = catalog(database)
    for mode in ("enforce", "correct", "observe", "off", "observe", "correct"):
        if mode != "enforce" or rule != "recent_creation_failure":
            registry.move(database, rule, mode, 100)
            assert state(database, rule)[0] == mode
    assert catalog(database) == before


BAD_INPUT = (
    (("nonsense", "--mode", "off"), "there is no rule 'nonsense' [ZG010]"),
    (
        ("recent_creation_failure", "--mode", "enforce"),
        "reports a fact: refusing the write would only hide it [ZG013]",
    ),
    (("missing_direction", "--mode", "strict"), "'strict' is not one of 'off', 'observe', 'correct', 'enforce'"),
    (("missing_direction", "--mode", "off", "--rollout", "101"), "101 is not in the range 0<=x<=100"),
    (("missing_direction",), "Missing option '--mode'"),
    (
        ("missing_direction", "--mode", "off", "--build-exclude"),
        "missing_direction has no EXCLUDE constraint to build.",
    ),
)


def test_bad_input(adopted: str) -> None:
    before = catalog(adopted)
    for arguments, said in BAD_INPUT:
        refused = invoke(adopted, "rules", "set", *arguments)
        assert refused.exit_code == 1
        assert said in refused.stderr
    assert catalog(adopted) == before


@pytest.mark.parametrize(
    ("mode", "rollout", "said"),
    [
        ("correct", "0", "at observe: correct is rolled out to no call yet."),
        ("observe", "25", "at observe for 25 % of calls, and at off for the others."),
        ("off", "50", "at off."),
    ],
)
def test_rollout_says_where_the_others_stand(mode: str, rollout: str, said: str, adopted: str) -> None:
    moved = invoke(adopted, "rules", "set", "missing_direction", "--mode", mode, "--rollout", rollout)
    assert moved.stdout.splitlines()[0] == f"missing_direction now stands {said}"


def test_rules_where_guard_is_not_installed(legacy: str) -> None:
    for arguments in (("list",), ("show", "missing_direction"), ("set", "missing_direction", "--mode", "off")):
        refused = invoke(legacy, "rules", *arguments)
        assert (refused.exit_code, refused.stderr) == (
            1,
            "guard: Guard is not installed in this database. Run guard apply.\n",
        )


def test_emergency_stop_while_another_command_works(database: str, guard: RunGuard) -> None:
    registry.move(database, "duplicate_booking", "enforce", 100)
    with install.exclusive(database):
        assert guard(database, "rules", "set", "missing_direction", "--mode", "off").returncode == 0
        stopped = guard(database, "rules", "set", "duplicate_booking", "--mode", "observe")
        assert stopped.returncode == 1
        assert stopped.stderr.startswith(
            "guard: duplicate_booking now stands at observe, but its constraint guard_duplicate_booking could not "
            "follow. Another guard command is changing this database (pid "
        )
        assert stopped.stderr.count("\n") == 1
    assert state(database, "missing_direction")[0] == "off"
    assert state(database, "duplicate_booking") == ("observe", 100, "in force")
    assert registry.move(database, "duplicate_booking", "observe", 100)["constraint"] == "absent"


@pytest.mark.slow
def test_operator_moves_a_rule_but_does_not_own_the_table(database: str, guard: RunGuard) -> None:
    execute(database, "create role op login", "grant guard_operator to op")
    try:
        operator = make_conninfo(database, user="op")
        assert guard(operator, "rules", "list").returncode == 0
        assert guard(operator, "rules", "set", "missing_direction", "--mode", "enforce").returncode == 0
        stopped = guard(operator, "rules", "set", "duplicate_booking", "--mode", "observe")
        assert stopped.returncode == 1
        assert "duplicate_booking now stands at observe, but its constraint" in stopped.stderr
        assert "must be owner of index guard_duplicate_booking [42501]" in stopped.stderr
        assert state(database, "duplicate_booking")[0] == "observe"
        assert query(database, "select distinct actor from guard.audit_log") == [("op",)]
    finally:
        execute(database, "drop owned by op", "drop role op")


@pytest.mark.slow
def test_owner_of_the_table_is_an_operator_but_does_not_own_guard(database: str, guard: RunGuard) -> None:
    before = catalog(database)[1]
    execute(
        database,
        "create role op login",
        "grant guard_operator to op",
        "grant create on schema public to op",
        "alter table appointments owner to op",
    )
    try:
        operator = make_conninfo(database, user="op")
        for rule in ("duplicate_booking", "overlapping_appointment"):
            for mode, constraint in (("observe", "absent"), ("correct", "in force")):
                moved = guard(operator, "rules", "set", rule, "--mode", mode)
                assert (moved.returncode, state(database, rule)[2]) == (0, constraint), moved.stderr
        assert catalog(database)[1] == before, "the ledger knows of it"
    finally:
        execute(database, "alter table appointments owner to postgres", "drop owned by op", "drop role op")


@pytest.mark.slow
def test_killed_between_add_and_validate(adopted: str, guard: RunGuard) -> None:
    """Validation waits for a transaction that locks out weaker ones too; adding has been done by then."""
    execute(adopted, "update calls set direction = 'inbound' where direction is null")
    execute(
        adopted,
        "create function hold() returns event_trigger language plpgsql as"
        " $$ begin if current_query() like '%validate constraint%' then perform pg_sleep(600); end if; end $$",
        "create event trigger hold on ddl_command_start execute function hold()",
    )
    process = start(adopted, "rules", "set", "missing_direction", "--mode", "enforce")
    wait_until(
        adopted,
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')",
        process,
    )
    process.kill()
    process.wait()
    execute(
        adopted,
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = current_database() and application_name = 'guard'",
        "drop event trigger hold",
    )
    assert state(adopted, "missing_direction") == ("enforce", 100, "unvalidated")
    found = json.loads(guard(adopted, "verify", "--json").stdout)["findings"]
    assert found == [
        {
            "kind": "not_validated",
            "object": "constraint guard_missing_direction on calls",
            "fix": "guard rules set missing_direction --mode MODE puts it in force",
        }
    ]
    assert guard(adopted, "rules", "set", "missing_direction", "--mode", "enforce").returncode == 0
    assert state(adopted, "missing_direction")[2] == "in force"


def test_lowering_removes_a_constraint_that_is_not_valid(adopted: str) -> None:
    execute(
        adopted,
        "alter table calls add constraint guard_missing_direction check (direction is not null) not valid",
        "insert into appointments (company_id, calcom_v2_booking_id) values (1, 'bk_54')",
    )
    with pytest.raises(errors.UniqueViolation):
        execute(
            adopted, "create unique index concurrently guard_duplicate_booking on appointments (calcom_v2_booking_id)"
        )
    assert state(adopted, "duplicate_booking")[2] == "invalid"
    for rule in ("missing_direction", "duplicate_booking"):
        registry.move(adopted, rule, "observe", 100)
        assert state(adopted, rule)[2] == "absent"


def test_row_written_while_the_constraint_is_built(adopted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted again, and what was begun is taken away: an invalid unique index would go on refusing writes."""
    execute(adopted, "delete from appointments where id in (select entity_id from guard.duplicate_booking)")
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(adopted) as connection:
            connection.execute("insert into appointments (company_id, calcom_v2_booking_id) values (1, 'bk_40')")
            started.set()
            wait_until(adopted, "select exists (select from pg_stat_progress_create_index)")
        done.set()

    started = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(20)
    result = registry.move(adopted, "duplicate_booking", "enforce", 100)
    writer.join()
    assert done.is_set()
    assert (result["violations"], result["constraint"]) == (1, "absent")
    assert (result["message"] or "").startswith("1 rows stand in the way of its constraint guard_duplicate_booking")


@pytest.mark.slow
def test_concurrent_writers_while_the_constraint_is_installed(adopted: str) -> None:
    """A violation written meanwhile carries guard's mark, which the CHECK accepts, or is repaired."""
    execute(adopted, "update calls set direction = 'inbound' where direction is null")
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        with psycopg.connect(adopted, autocommit=True) as connection:
            while not stop.is_set():
                try:
                    connection.execute("insert into calls (company_id) values (1)")
                except psycopg.Error as error:
                    failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            registry.move(adopted, "missing_direction", "correct", 100)
            registry.move(adopted, "missing_direction", "observe", 100)
        execute(adopted, "update calls set direction = 'inbound' where direction is null")
        result = registry.move(adopted, "missing_direction", "correct", 100)
    finally:
        stop.set()
        writer.join()
    assert failures == []
    assert result["constraint"] in ("in force", "absent")


# --- rules of an operator's own ---------------------------------------------------------------------------------------

ANONYMOUS = """-- provides: view guard.anonymous_call
-- provides: rule anonymous_call
--
-- Nobody can be called back.

create or replace view guard.anonymous_call
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id as entity_id,
    c.company_id,
    guard.instant(greatest(c.created_at, c.updated_at)) as occurred_at,
    jsonb_build_object('status', c.status) as details
from public.calls as c
inner join guard.rules as r on r.rule = 'anonymous_call'
where c.from_number is null;

select guard.register_rule(
    p_rule => 'anonymous_call',
    p_severity => 'warning',
    p_entity_type => 'call',
    p_errcode => 'ZG100',
    p_description => 'the caller''s number is not known',
    p_repair => 'none',
    p_runbook => 'Ask for the number.',
    p_repairable => false,
    p_constraint_kind => 'check',
    p_constraint_definition => $$check (from_number is not null)$$
);
"""


@pytest.fixture
def own(tmp_path: Path, adopted: str) -> Path:
    """A folder with one rule, which seven calls of the database break."""
    execute(adopted, "update calls set from_number = null where id in (11, 21, 31, 41, 51, 61, 71)")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "anonymous_call.sql").write_text(ANONYMOUS)
    return folder


def counted(dsn: str, own_rules: Path | None) -> dict[str, Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return {rule["rule"]: rule["violations"] for rule in audit.run(connection, own_rules)["rules"]}


def test_own_rule(adopted: str, own: Path, guard: RunGuard) -> None:
    assert counted(adopted, own)["anonymous_call"] == 7
    with psycopg.connect(adopted, autocommit=True) as connection:
        assert {step["source"] for step in plan.steps(connection, own)} == {"rules/anonymous_call.sql"}

    applied = guard(adopted, "apply", "--rules", str(own))
    assert (applied.returncode, applied.stdout) == (0, "applied rules/anonymous_call.sql\n")
    assert counted(adopted, None)["anonymous_call"] == 7
    assert guard(adopted, "verify", GUARD_RULES=str(own)).stdout.splitlines() == [
        "note: anonymous_call: the rule registers no probe",
        f"note: {verify.NO_SCHEDULER}",
        "ok: files, ledger and catalog agree. Rules not tried on a bad row: anonymous_call.",
    ]
    assert "anonymous_call" in guard(adopted, "rules", "list").stdout

    assert guard(adopted, "rules", "set", "anonymous_call", "--mode", "enforce").returncode == 2
    execute(adopted, "update calls set from_number = 'withheld' where from_number is null")
    assert guard(adopted, "rules", "set", "anonymous_call", "--mode", "enforce").returncode == 0
    with pytest.raises(errors.CheckViolation):
        execute(adopted, "insert into calls (company_id) values (1)")

    before = catalog(adopted)
    assert guard(adopted, "apply").stdout.startswith("Nothing to do"), "a rule whose folder is not given stays"
    assert catalog(adopted) == before
    found = guard(adopted, "verify", "--json")
    assert {finding["kind"] for finding in json.loads(found.stdout)["findings"]} == {"orphaned"}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A folder with the rule of CONTRIBUTING.md."""
    (text,) = re.findall(r"```sql\n(-- provides: view guard\.(\w+)\n.*?)```", CONTRIBUTING, re.DOTALL)
    folder = tmp_path / "example"
    folder.mkdir()
    (folder / f"{text[1]}.sql").write_text(text[0])
    return folder


@pytest.mark.parametrize("made", ["database", "adopted"])
def test_rule_of_the_documentation(made: str, example: Path, request: pytest.FixtureRequest, guard: RunGuard) -> None:
    """It has no trigger: its CHECK is in force at enforce alone, and what it finds is told."""
    dsn = request.getfixturevalue(made)
    execute(dsn, "insert into companies (id, name) values (999, 'One')")
    execute(dsn, "delete from appointments", "delete from calls")
    with psycopg.connect(dsn, autocommit=True) as connection:
        planned = {step["source"] for step in plan.steps(connection, example)}
    assert planned == {"rules/unknown_call.sql"}
    assert apply(dsn, own_rules=example) == ["applied rules/unknown_call.sql"]
    for mode in ("off", "observe", "correct"):
        assert guard(dsn, "rules", "set", "unknown_call", "--mode", mode).returncode == 0
        execute(dsn, "insert into calls (company_id, direction) values (999, 'inbound')")
        assert state(dsn, "unknown_call")[2] == "absent"
        with psycopg.connect(dsn, autocommit=True) as connection:
            result = verify.run(connection, example)
        assert (result["ok"], result["unprobed"]) == (True, ["unknown_call"])
    assert counted(dsn, example)["unknown_call"] == 3
    assert guard(dsn, "rules", "set", "unknown_call", "--mode", "enforce").returncode == 2

    execute(dsn, "update calls set retell_call_id = id")
    assert guard(dsn, "rules", "set", "unknown_call", "--mode", "enforce").returncode == 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert verify.run(connection, example)["unprobed"] == ["unknown_call"]
    with pytest.raises(errors.CheckViolation):
        execute(dsn, "insert into calls (company_id, direction) values (999, 'inbound')")
    lowered = registry.move(dsn, "unknown_call", "enforce", 50)
    assert lowered["message"] == (
        "Its constraint guard_unknown_call was removed: it would refuse what the mode lets through."
    )
    execute(dsn, "insert into calls (company_id, direction) values (999, 'inbound')")


def test_check_that_accepts_marks_nobody_makes(database: str, example: Path) -> None:
    """As in a copy of a rule of guard's: what counts is whether a trigger knows the rule."""
    (file,) = example.iterdir()
    file.write_text(
        file.read_text().replace(
            "'check (retell_call_id is not null)'",
            """$$check (retell_call_id is not null or (guard_corrections @> '[{"rule": "unknown_call"}]') is true)$$""",
        )
    )
    assert apply(database, own_rules=example) == ["applied rules/unknown_call.sql"]
    assert state(database, "unknown_call") == ("correct", 100, "absent")
    assert registry.move(database, "unknown_call", "enforce", 100)["constraint"] == "in force"
    assert registry.move(database, "unknown_call", "observe", 100)["constraint"] == "absent"


@pytest.mark.slow
def test_own_rule_goes_with_its_constraint(adopted: str, own: Path) -> None:
    before = catalog(adopted)
    execute(adopted, "update calls set from_number = 'withheld' where from_number is null")
    apply(adopted, own_rules=own)
    registry.move(adopted, "anonymous_call", "enforce", 100)
    assert set(apply(adopted, prune=True)) == {"dropped view guard.anonymous_call", "dropped rule anonymous_call"}
    assert catalog(adopted) == before

    rollback(adopted)
    assert state(adopted, "anonymous_call") == ("observe", 100, "absent")
    registry.move(adopted, "anonymous_call", "enforce", 100)
    rollback(adopted)
    assert catalog(adopted) == before


def test_own_rule_before_guard_is_installed(legacy: str, own: Path, guard: RunGuard) -> None:
    execute(legacy, "update calls set from_number = null where id <= 4")
    assert counted(legacy, own)["anonymous_call"] == 4
    apply(legacy, own_rules=own)
    with psycopg.connect(legacy, autocommit=True) as connection:
        assert verify.run(connection, own)["ok"]


def test_rule_whose_constraint_says_more_than_its_view(adopted: str, own: Path) -> None:
    file = own / "anonymous_call.sql"
    file.write_text(ANONYMOUS.replace("where c.from_number is null", "where c.from_number is null and c.id < 0"))
    apply(adopted, own_rules=own)
    with pytest.raises(GuardError, match=r"refuses rows that guard\.anonymous_call does not show"):
        registry.move(adopted, "anonymous_call", "enforce", 100)
    assert state(adopted, "anonymous_call") == ("enforce", 100, "absent")


#: What is put in the place of what in the rule, and what apply says then.
BROKEN = (
    ("c.from_number", "c.form_number", "rules/anonymous_call.sql, line 19: column c.form_number does not exist"),
    ("'ZG100'", "'42000'", 'rules/anonymous_call.sql: new row for relation "rules" violates check constraint'),
    (
        "r.severity,",
        "",
        "rules/anonymous_call.sql: the view guard.anonymous_call has no column severity of type text",
    ),
    (
        "-- provides: rule anonymous_call\n",
        "-- provides: rule anonymous\n",
        "says that it provides rule anonymous,",
    ),
    ("p_repair =>", "p_repairs =>", "rules/anonymous_call.sql, line 21: function guard.register_rule("),
)


def test_broken_own_rule_is_one_clear_line(adopted: str, own: Path) -> None:
    before = catalog(adopted)
    for old, new, said in BROKEN:
        (own / "anonymous_call.sql").write_text(ANONYMOUS.replace(old, new))
        refused = invoke(adopted, "apply", "--rules", str(own))
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert said in refused.stderr
    assert catalog(adopted) == before


def test_folder_that_is_not_there(adopted: str, tmp_path: Path) -> None:
    for refused in (
        invoke(adopted, "apply", "--rules", str(tmp_path / "none")),
        invoke(adopted, "audit", GUARD_RULES=str(tmp_path / "none")),
    ):
        assert refused.exit_code == 1
        assert "does not exist" in refused.stderr


def test_constraint_state_of_a_rule_without_one(adopted: str) -> None:
    with psycopg.connect(adopted) as connection:
        assert constraints.state(connection, "tenant_mismatch") is None
    assert registry.move(adopted, "tenant_mismatch", "correct", 100)["constraint"] is None
