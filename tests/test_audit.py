"""guard audit: exact counts, read-only, whether guard is installed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guard import audit
from guard.errors import GuardError
from tests.catalog import apply, execute, query, rows, schema
from tests.processes import invoke

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import MakeDatabase, RunGuard

#: What examples/legacy/README.md says of a thousand calls.
DEFECTS = {
    "appointment_made_mismatch": 10,
    "duplicate_booking": 1,
    "missing_appointment": 10,
    "overlapping_appointment": 1,
    "session_outcome_mismatch": 10,
    "tenant_mismatch": 1,
    "inconsistent_customer_link": 10,
    "inconsistent_link_status": 10,
    "missing_direction": 10,
    "orphaned_appointment": 20,
    "recent_creation_failure": 0,
}

TIMESTAMPS = {
    "calls": ("created_at", "updated_at", "appointment_linked_at", "customer_linked_at"),
    "appointments": ("created_at", "updated_at", "starts_at", "ends_at"),
}
ZONES = ("America/Los_Angeles", "Pacific/Kiritimati")


def counts(dsn: str, **options: Any) -> dict[str, int | None]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return {rule["rule"]: rule["violations"] for rule in audit.run(connection, **options)["rules"]}


def make_zoned(dsn: str) -> None:
    """The application's timestamps with a zone."""
    for table, columns in TIMESTAMPS.items():
        execute(dsn, f"alter table {table} " + ", ".join(f"alter {name} type timestamptz" for name in columns))


@pytest.fixture
def reader(legacy: str) -> Iterator[str]:
    """A login that may read the application's tables, and nothing else."""
    execute(legacy, "create role audit_reader login", "grant select on all tables in schema public to audit_reader")
    yield "audit_reader"
    execute(legacy, "drop owned by audit_reader", "drop role audit_reader")


def test_exact_counts_as_json(legacy: str, guard: RunGuard) -> None:
    before = schema(legacy), rows(legacy)
    audited = guard(legacy, "audit", "--json")
    assert audited.returncode == 2
    result = json.loads(audited.stdout)
    assert list(result) == ["total_calls", "total_appointments", "consistency_rate_pct", "rules"]
    assert (result["total_calls"], result["total_appointments"], result["consistency_rate_pct"]) == (1000, 430, 94.0)
    assert {tuple(rule) for rule in result["rules"]} == {("rule", "severity", "violations", "note")}
    assert [(rule["rule"], rule["violations"]) for rule in result["rules"]] == list(DEFECTS.items())
    assert [rule["severity"] for rule in result["rules"]] == ["critical"] * 6 + ["warning"] * 4 + ["info"]
    assert (schema(legacy), rows(legacy)) == before


def test_exact_counts_as_a_table(legacy: str) -> None:
    printed = invoke(legacy, "audit").stdout
    assert dict(line.split()[::2] for line in printed.splitlines()[1:12]) == {
        rule: str(count) for rule, count in DEFECTS.items()
    }
    assert printed.splitlines()[-1] == "1000 calls, 430 appointments, 94.00 % of calls consistent"


def test_consistency_rate(legacy: str) -> None:
    wrong = query(
        legacy,
        "select count(*) from calls where id % 100 in (1, 2, 3, 4, 7, 8)",
    )
    with psycopg.connect(legacy, autocommit=True) as connection:
        assert audit.run(connection)["consistency_rate_pct"] == 100 - wrong[0][0] / 10


def test_same_counts_with_invoke(adopted: str) -> None:
    assert counts(adopted) == DEFECTS
    assert invoke(adopted, "audit").exit_code == 2


def test_terminal_in_another_time_zone(legacy: str, adopted: str, guard: RunGuard) -> None:
    for dsn, zone in zip((legacy, adopted), ZONES, strict=True):
        result = json.loads(guard(dsn, "audit", "--json", PGTZ=zone).stdout)
        assert {rule["rule"]: rule["violations"] for rule in result["rules"]} == DEFECTS


def test_session_in_another_time_zone(legacy: str, adopted: str) -> None:
    zones = [f"-c timezone={zone}" for zone in ZONES]
    for zone in zones:
        assert counts(make_conninfo(adopted, options=zone)) == DEFECTS
        assert counts(make_conninfo(legacy, options=zone), app_timezone="UTC") == DEFECTS
    make_zoned(legacy)
    for zone in zones:
        assert counts(make_conninfo(legacy, options=zone)) == DEFECTS
    apply(legacy)
    for zone in zones:
        assert counts(make_conninfo(legacy, options=zone)) == DEFECTS


def test_zone_of_the_timestamps_can_be_said(legacy: str) -> None:
    """Los Angeles writes local times that, read as UTC, are hours ago; Kiritimati's are hours from now."""
    execute(legacy, "update calls set created_at = created_at + interval '14 hours', updated_at = null")
    assert counts(legacy)["missing_appointment"] == 0
    assert counts(legacy, app_timezone="Pacific/Kiritimati") == DEFECTS
    assert invoke(legacy, "audit", "--app-timezone", "Mars/Olympus").stderr.startswith(
        "guard: Guard cannot audit this: Mars/Olympus is not a time zone that the server knows. "
    )


def test_select_is_the_only_right_that_is_needed(reader: str, legacy: str, guard: RunGuard) -> None:
    restricted = make_conninfo(legacy, user=reader, options="-c default_transaction_read_only=on")
    assert counts(restricted) == DEFECTS
    apply(legacy)
    assert counts(restricted) == DEFECTS, "without rights on schema guard the files are asked"
    execute(legacy, f"grant guard_reader to {reader}")
    assert counts(restricted) == DEFECTS


def test_missing_rights_are_told(reader: str, legacy: str) -> None:
    execute(legacy, f"revoke select on appointments from {reader}")
    refused = invoke(make_conninfo(legacy, user=reader), "audit")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("guard: permission denied for table appointments [42501]. Connect as a role")


def test_rows_that_a_policy_hides_are_not_left_out_on_the_quiet(reader: str, legacy: str) -> None:
    execute(
        legacy,
        "alter table calls enable row level security",
        f"create policy one_company on calls to {reader} using (company_id = 1)",
    )
    refused = invoke(make_conninfo(legacy, user=reader), "audit")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert 'would be affected by row-level security policy for table "calls" [42501]' in refused.stderr


def test_rule_whose_columns_are_missing_says_so(legacy: str) -> None:
    execute(legacy, "alter table calls drop column customer_link_method")
    result = json.loads(invoke(legacy, "audit", "--json").stdout)
    (unasked,) = [rule for rule in result["rules"] if rule["violations"] is None]
    assert unasked["rule"] == "inconsistent_customer_link"
    assert unasked["note"] == "cannot be asked here: column c.customer_link_method does not exist"
    assert {rule["rule"]: rule["violations"] for rule in result["rules"]} == DEFECTS | {unasked["rule"]: None}
    assert result["consistency_rate_pct"] is None
    printed = invoke(legacy, "audit").stdout
    assert "column c.customer_link_method does not exist" in " ".join(printed.split())
    assert printed.splitlines()[-1] == (
        "1000 calls, 430 appointments, how many calls are consistent is not known; 1 of 11 rules could not be asked"
    )


def test_timestamps_that_are_missing(legacy: str) -> None:
    """They only say when a row was written, but where the rule is about that."""
    for table, columns, unasked in (
        ("calls", "drop updated_at", []),
        ("appointments", "drop updated_at, drop created_at", []),
        ("calls", "drop created_at", ["recent_creation_failure"]),
    ):
        execute(legacy, f"alter table {table} {columns}")
        assert counts(legacy) == DEFECTS | dict.fromkeys(unasked)
    with psycopg.connect(legacy, autocommit=True) as connection:
        assert audit.run(connection)["consistency_rate_pct"] == 94.0
    assert (
        invoke(legacy, "audit")
        .stdout.splitlines()[-1]
        .endswith("94.00 % of calls consistent; 1 of 11 rules could not be asked")
    )


def test_ids_that_are_no_numbers(legacy: str) -> None:
    execute(
        legacy,
        "alter table calls drop column id, add column id uuid default gen_random_uuid()",
    )
    with psycopg.connect(legacy, autocommit=True) as connection:
        result = audit.run(connection)
    assert result["consistency_rate_pct"] is None


def test_columns_of_other_types(legacy: str) -> None:
    """A rule that cannot be asked never hides the others."""
    execute(legacy, "alter table appointments alter call_id type text, alter starts_at type text")
    found = counts(legacy)
    assert found["missing_direction"] == 10
    assert found["missing_appointment"] is None


def test_only_calls(legacy: str) -> None:
    execute(legacy, "drop table appointments")
    with psycopg.connect(legacy, autocommit=True) as connection:
        result = audit.run(connection)
    assert (result["total_calls"], result["total_appointments"]) == (1000, 0)
    answered = {rule["rule"]: rule["violations"] for rule in result["rules"] if rule["violations"] is not None}
    assert answered == {
        "appointment_made_mismatch": 10,
        "session_outcome_mismatch": 10,
        "inconsistent_customer_link": 10,
        "missing_direction": 10,
        "recent_creation_failure": 0,
    }


def test_nothing_wrong(database: str) -> None:
    audited = invoke(database, "audit")
    assert audited.exit_code == 0
    assert audited.stdout.splitlines()[-1] == "0 calls, 0 appointments, 100.00 % of calls consistent"


def test_a_fact_is_no_violation(database: str) -> None:
    execute(
        database,
        "insert into companies (id, name) values (1, 'One')",
        "insert into calls (company_id, direction, session_outcome) values (1, 'inbound', 'creation_failed')",
    )
    assert counts(database)["recent_creation_failure"] == 1
    assert invoke(database, "audit").exit_code == 0


def test_neither_table(make_database: MakeDatabase) -> None:
    refused = invoke(make_database(), "audit")
    assert (refused.exit_code, refused.stderr) == (
        1,
        "guard: This database has neither public.calls nor public.appointments. "
        "Name the booking database with --dsn, or let guard apply create the tables.\n",
    )


def test_half_installed(adopted: str) -> None:
    """Rules that are not registered, or whose view is gone, are asked by their files."""
    execute(adopted, "drop view guard.missing_direction", "delete from guard.rules where rule < 'm'")
    assert counts(adopted) == DEFECTS


def test_own_rules_that_say_too_little(legacy: str, tmp_path: Path) -> None:
    (tmp_path / "broken.sql").write_text("-- provides: rule broken\nselect 1;\n")
    with (
        psycopg.connect(legacy, autocommit=True) as connection,
        pytest.raises(GuardError, match=r"rules/broken\.sql does not register a rule with a view"),
    ):
        audit.run(connection, tmp_path)
