"""The ledger of replaceable objects: one edit is one diff, drift is found and mended, an earlier text comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from guard import ledger, verify
from guard.errors import GuardError
from tests.catalog import MIGRATIONS, apply, catalog, execute, query, rollback
from tests.databases import PROJECT

if TYPE_CHECKING:
    from tests.databases import RunGuard

pytestmark = pytest.mark.slow

Findings = set[tuple[str, str]]


def findings(dsn: str) -> Findings:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return {(finding["kind"], finding["object"]) for finding in verify.run(connection)["findings"]}


def description(dsn: str) -> str:
    text: str = query(dsn, "select obj_description('guard.in_rollout(bigint, integer)'::regprocedure)")[0][0]
    return text


def edit(project: Path, path: str, old: str, new: str) -> None:
    file = project / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_edit_is_pending_then_applied_alone_then_undone(adopted: str, project: Path) -> None:
    before = catalog(adopted)
    edit(project, "sql/functions/ladder.sql", "'Whether a call is", "'Whether, by hash, a call is")
    assert findings(adopted) == {("pending", "sql/functions/ladder.sql")}

    assert apply(adopted) == ["applied sql/functions/ladder.sql"]
    assert findings(adopted) == set()
    assert description(adopted).startswith("Whether, by hash,")
    assert query(adopted, "select path from guard.object_log where run_id = 2") == [("sql/functions/ladder.sql",)]

    assert rollback(adopted) == ["restored sql/functions/ladder.sql"]
    assert catalog(adopted) == before
    assert findings(adopted) == {("pending", "sql/functions/ladder.sql")}
    assert apply(adopted) == ["applied sql/functions/ladder.sql"]


def test_each_rollback_undoes_one_apply(adopted: str, project: Path) -> None:
    for edition in ("second", "third"):
        edit(project, "sql/functions/ladder.sql", "'Whether ", f"'Whether {edition} ")
        apply(adopted)
    assert description(adopted).startswith("Whether third second a call")
    rollback(adopted)
    assert description(adopted).startswith("Whether second a call")
    rollback(adopted)
    assert description(adopted).startswith("Whether a call")
    with pytest.raises(GuardError, match="only one apply"):
        rollback(adopted)


def test_object_that_its_file_no_longer_provides_is_dropped(adopted: str, project: Path) -> None:
    before = catalog(adopted)
    text = (
        "-- provides: function guard.one()\n-- provides: view guard.ones\n"
        "create or replace function guard.one() returns integer language sql as 'select 1';\n"
    )
    view = "create or replace view guard.ones as select guard.one() as one;\n"
    file = project / "sql" / "views" / "ones.sql"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text + view)
    apply(adopted)
    assert query(adopted, "select one from guard.ones") == [(1,)]

    file.write_text(text.replace("-- provides: view guard.ones\n", ""))
    assert apply(adopted) == ["applied sql/views/ones.sql", "dropped view guard.ones"]
    assert query(adopted, "select to_regclass('guard.ones')") == [(None,)]

    rollback(adopted)
    assert query(adopted, "select one from guard.ones") == [(1,)]
    rollback(adopted)
    assert catalog(adopted) == before


def test_object_may_move_to_another_file(adopted: str, project: Path) -> None:
    made = "create or replace function guard.one() returns integer language sql as 'select 1';\n"
    provides = "-- provides: function guard.one()\n"
    for name in ("a", "b"):
        other = f"-- provides: function guard.{name}()\ncreate or replace function guard.{name}() returns integer"
        (project / "sql" / "functions" / f"{name}.sql").write_text(f"{other} language sql as 'select 2';\n")
    with (project / "sql/functions/a.sql").open("a") as file:
        file.write(provides + made)
    apply(adopted)
    shutil.copy(project / "sql/functions/a.sql", project / "a.sql")
    edit(project, "sql/functions/a.sql", provides + made, "")
    with (project / "sql/functions/b.sql").open("a") as file:
        file.write(provides + made)
    assert apply(adopted) == ["applied sql/functions/a.sql", "applied sql/functions/b.sql"]
    assert query(adopted, "select guard.one()") == [(1,)]
    assert findings(adopted) == set()


def test_trigger_that_its_file_no_longer_provides_goes_with_the_new_text(adopted: str, project: Path) -> None:
    name = "after_truncate_call_check_appointments"
    path = "sql/triggers/calls.sql"
    edit(project, path, f"-- provides: trigger public.calls {name}", f"-- provides: trigger public.calls {name}_2")
    edit(project, path, f"create or replace trigger {name}", f"create or replace trigger {name}_2")
    assert apply(adopted) == [f"applied {path}"]
    assert query(adopted, f"select tgname from pg_trigger where tgname like '{name}%'") == [(f"{name}_2",)]
    rollback(adopted)
    assert query(adopted, f"select tgname from pg_trigger where tgname like '{name}%'") == [(name,)]


#: What is done to one object each, and what verify says of it.
DRIFT = {
    "function": (
        "create or replace function guard.in_rollout(p_key bigint, p_pct integer) returns boolean"
        " language sql as 'select true'",
        ("drifted", "function guard.in_rollout(bigint, integer)"),
    ),
    "rights": (
        "grant execute on function guard.refuse(text, bigint) to public",
        ("drifted", "function guard.refuse(text, bigint)"),
    ),
    "rights on a view": (
        "grant select on guard.missing_direction to guard_app with grant option",
        ("drifted", "view guard.missing_direction"),
    ),
    "view option": (
        "alter view guard.missing_appointment set (security_invoker = false)",
        ("drifted", "view guard.missing_appointment"),
    ),
    "view": (
        "create or replace view guard.tenant_mismatch with (security_invoker = true) as"
        " select 'x' as rule, 'info' as severity, 'call' as entity_type, 1::bigint as entity_id,"
        " 1::bigint as company_id, now() as occurred_at, '{}'::jsonb as details, id as row_id,"
        " created_at as row_created_at from appointments",
        ("drifted", "view guard.tenant_mismatch"),
    ),
    "rule": (
        "update guard.rules set constraint_definition = 'check (true)' where rule = 'missing_direction'",
        ("drifted", "rule missing_direction"),
    ),
    "rule deleted": (
        "delete from guard.rules where rule = 'duplicate_booking'",
        ("missing", "rule duplicate_booking"),
    ),
    "trigger": (
        "create or replace trigger before_insert_call_set_direction before insert on calls"
        " for each row execute function guard.call_set_direction()",
        ("drifted", "trigger public.calls before_insert_call_set_direction"),
    ),
    "trigger dropped": (
        "drop trigger after_insert_appointment_sync_call on appointments",
        ("missing", "trigger public.appointments after_insert_appointment_sync_call"),
    ),
    "trigger disabled": (
        "alter table calls disable trigger before_insert_call_begin",
        ("disabled_trigger", "trigger public.calls before_insert_call_begin"),
    ),
    "trigger for replicas": (
        "alter table calls enable replica trigger before_update_call_begin",
        ("disabled_trigger", "trigger public.calls before_update_call_begin"),
    ),
    "trigger always": (
        "alter table calls enable always trigger before_update_call_set_direction",
        ("drifted", "trigger public.calls before_update_call_set_direction"),
    ),
    "constraint trigger disabled": (
        "alter table calls disable trigger after_insert_call_require_appointment",
        ("disabled_trigger", "trigger public.calls after_insert_call_require_appointment"),
    ),
}


def test_changes_by_hand_are_found_and_taken_back(adopted: str) -> None:
    before = catalog(adopted)
    execute(adopted, *(change for change, _ in DRIFT.values()))
    assert findings(adopted) == {finding for _, finding in DRIFT.values()}
    apply(adopted)
    assert catalog(adopted) == before
    assert findings(adopted) == set()


@pytest.mark.parametrize(("change", "finding"), DRIFT.values(), ids=DRIFT.keys())
def test_change_by_hand_is_found_and_taken_back(change: str, finding: tuple[str, str], adopted: str) -> None:
    before = catalog(adopted)
    execute(adopted, change)
    assert findings(adopted) == {finding}
    (line,) = apply(adopted)
    assert line.startswith("restored sql/")
    assert catalog(adopted) == before
    assert findings(adopted) == set()


def test_all_triggers_disabled_at_once(adopted: str) -> None:
    execute(adopted, "alter table calls disable trigger all", "alter table appointments disable trigger all")
    provided = {o for file in ledger.read_files() for o in file.provides if o.kind == "trigger"}
    assert findings(adopted) == {("disabled_trigger", str(trigger)) for trigger in provided}
    assert apply(adopted) == ["restored sql/triggers/appointments.sql", "restored sql/triggers/calls.sql"]
    assert findings(adopted) == set()


def test_orphans_are_found_and_dropped_only_when_asked_for(adopted: str, project: Path) -> None:
    before = catalog(adopted)
    file = project / "sql" / "functions" / "one.sql"
    file.write_text(
        "-- provides: function guard.one()\ncreate function guard.one() returns int language sql as 'select 1'"
    )
    apply(adopted)
    file.unlink()
    assert findings(adopted) == {("orphaned", "function guard.one()")}
    assert apply(adopted) == []
    assert query(adopted, "select guard.one()") == [(1,)]
    assert apply(adopted, prune=True) == ["dropped function guard.one()"]
    assert findings(adopted) == set()
    assert catalog(adopted) == before

    rollback(adopted)
    assert query(adopted, "select guard.one()") == [(1,)]
    rollback(adopted)
    assert catalog(adopted) == before


def test_edited_migration_is_found(adopted: str, project: Path) -> None:
    edit(project, "migrations/0011.period.sql", "-- The time", "-- The times")
    assert findings(adopted) == {("edited", "migration 0011.period")}
    assert apply(adopted) == []


def test_migration_of_a_later_version_is_found(adopted: str, project: Path) -> None:
    for suffix in ("sql", "rollback.sql"):
        (project / "migrations" / f"{MIGRATIONS[-1]}.{suffix}").unlink()
    assert findings(adopted) == {("orphaned", f"migration {MIGRATIONS[-1]}")}


BROKEN = (
    ("select 1;", "sql/functions/broken.sql does not say what it provides."),
    (
        "-- provides: function guard.broken()\n\nselect 1 +;\n",
        'sql/functions/broken.sql, line 3: syntax error at or near ";" [42601]',
    ),
    (
        "-- provides: function guard.broken()\nselect 1;",
        "sql/functions/broken.sql says that it provides function guard.broken(), and does not.",
    ),
    (
        "-- provides: function guard.broken\nselect 1;",
        "sql/functions/broken.sql",
    ),
    (
        "-- provides: view guard.missing_direction\nselect 1;",
        "provides view guard.missing_direction, and so does sql/functions/broken.sql.",
    ),
    ("-- provides: function guard.broken()\nselect 1 / 0;", "sql/functions/broken.sql: division by zero [22012]"),
)


def test_broken_file_is_named_and_changes_nothing(adopted: str, project: Path) -> None:
    before = catalog(adopted)
    for text, said in BROKEN:
        (project / "sql" / "functions" / "broken.sql").write_text(text)
        with pytest.raises(GuardError) as refused:
            apply(adopted)
        assert said in refused.value.message
    assert catalog(adopted) == before


def test_file_that_is_not_text(project: Path) -> None:
    (project / "sql" / "functions" / "broken.sql").write_bytes(b"-- provides: function guard.x() \xff")
    with pytest.raises(GuardError, match=r"sql/functions/broken\.sql is not UTF-8"):
        ledger.read_files()


def test_every_object_in_the_catalog_is_declared(database: str) -> None:
    """What a file makes without declaring it would be neither verified nor dropped."""
    made = query(
        database,
        """
        select case p.prokind when 'p' then 'procedure' else 'function' end, p.oid::regprocedure::text from pg_proc as p
        where p.pronamespace = 'guard'::regnamespace and p.proname <> 'period'
            and not exists (select from pg_depend as d where d.objid = p.oid and d.deptype = 'e')
        union all
        select 'view', c.oid::regclass::text from pg_class as c
        where c.relnamespace in (select oid from pg_namespace where nspname in ('guard', 'guard_bi'))
            and c.relkind in ('v', 'm')
        union all
        select 'trigger', 'public.' || t.tgrelid::regclass || ' ' || t.tgname from pg_trigger as t
        inner join pg_proc as p on t.tgfoid = p.oid
        where p.pronamespace = 'guard'::regnamespace
        union all
        select 'rule', r.rule from guard.rules as r
        union all
        select 'job', j.job from guard.jobs as j
        union all
        select 'constraint', 'public.' || c.conrelid::regclass || ' ' || c.conname from pg_constraint as c
        where c.connamespace = 'public'::regnamespace and c.conname ~ '^guard_'
        union all
        select 'index', 'public.' || i.indexrelid::regclass from pg_index as i
        where i.indexrelid::regclass::text ~ '^guard_' and not i.indisexclusion
        """,
    )
    known = query(
        database,
        """
        select kind, case when kind in ('function', 'procedure') then to_regprocedure(identity)::text else identity end
        from guard.objects where kind <> 'migration'
        """,
    )
    assert set(made) == set(known)
    assert {path for (path,) in query(database, "select path from guard.objects")} == {
        str(file.relative_to(PROJECT))
        for folder in ("migrations", "sql")
        for file in (PROJECT / folder).rglob("*.sql")
        if not file.name.endswith(".rollback.sql")
    }


def test_log_keeps_every_text(database: str) -> None:
    logged: dict[str, str] = dict(query(database, "select path, body from guard.object_log"))
    assert logged == {file.path: file.text for file in ledger.read_files()}


def test_findings_as_json(adopted: str, guard: RunGuard) -> None:
    execute(adopted, "drop trigger after_insert_appointment_sync_call on appointments")
    found = guard(adopted, "--json", "verify")
    assert found.returncode == 2
    result = json.loads(found.stdout)
    assert len(result.pop("unprobed")) == 11
    assert result == {
        "ok": False,
        "findings": [
            {
                "kind": "missing",
                "object": "trigger public.appointments after_insert_appointment_sync_call",
                "fix": "guard apply",
            }
        ],
        "notes": [],
    }
