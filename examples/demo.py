"""The main job on real input: a dirty booking database is audited, guarded, corrected and reported on; then bookings go
wrong; in the end the same faults are played with guard and without.

Starts the embedded server in a folder of its own, loads the legacy example into it, and runs the guard command step by
step, then `examples.booking` on an empty database; every command is shown as it could be typed. Exits 1 as soon as a
step does not do what it should.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from rich.table import Table

from examples import booking
from examples.stage import console, expect, fail, guard, guard_json, show, title, write

HERE = Path(__file__).parent
PROJECT = HERE.parent

#: What examples/legacy/README.md says is wrong, as a share of the calls.
DEFECTS = {
    "session_outcome_mismatch": 100,
    "appointment_made_mismatch": 100,
    "missing_appointment": 100,
    "missing_direction": 100,
    "orphaned_appointment": 50,
    "inconsistent_link_status": 100,
    "inconsistent_customer_link": 100,
    "recent_creation_failure": None,
    "tenant_mismatch": 1000,
    "duplicate_booking": 1000,
    "overlapping_appointment": 1000,
}
#: What only a person can decide; of orphans those that no call knows.
UNDECIDABLE = (
    "orphaned_appointment",
    "tenant_mismatch",
    "duplicate_booking",
    "overlapping_appointment",
    "recent_creation_failure",
)
ENFORCED = ("inconsistent_link_status", "missing_direction", "session_outcome_mismatch", "tenant_mismatch")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="guard-demo-") as folder:
        if os.geteuid() == 0:
            os.chmod(folder, 0o711)  # noqa: S103  # the server runs as another user, who must reach the folder
        os.environ["GUARD_HOME"] = f"{folder}/home"
        for name in [name for name in os.environ if name == "GUARD_DSN" or name.startswith("PG")]:
            del os.environ[name]
        try:
            server = guard_json("up")["dsn"]
            run(server)
            booking.run(_new_database(server, "booking"))
            title("What guard changes: the same calls and faults, without it and with it")
            guard("simulate", "--calls", "1000")
        finally:
            guard("down")


def run(server: str, calls: int = 10_000) -> None:
    """The main part, on the server that runs at `server`; `calls` is a multiple of 1000."""
    legacy = _new_database(server, "legacy")
    os.environ["GUARD_DSN"] = legacy

    with psycopg.connect(legacy, autocommit=True) as connection:
        title(f"A booking database as it is before guard: {calls:,} calls")
        connection.execute(f"set legacy.calls = {calls}")
        for name in ("schema.sql", "load.sql"):
            connection.execute((HERE / "legacy" / name).read_bytes())
        check_audit(calls)
        before = rows(connection)

        title("Adopt it: every rule starts at observe, nothing is changed")
        guard("apply")
        expect(rows(connection) == before, "guard apply left every row as it was")
        check_audit(calls)

        title("What is wrong already is known, and no news")
        guard("incidents", "baseline", "--take")
        write(connection, "update calls set direction = null, updated_at = localtimestamp where id = 10")
        show(
            connection,
            "select rule, found, new_incidents from guard.detect() where found > 0",
            [("missing_direction", 1, 1)],
        )
        guard("incidents", "list")

        title("Raise the rules to correct")
        for rule in DEFECTS:
            if rule != "recent_creation_failure":
                guard_json("rules", "set", rule, "--mode", "correct")
        guard("rules", "list")

        title("Now bad writes are repaired, and the values before are kept")
        write(
            connection,
            """
            insert into calls (id, company_id, session_outcome, appointment_made, customer_id, created_at, updated_at)
            values (20001, 1, 'abandoned', true, 1, localtimestamp, localtimestamp)
            """,
        )
        show(
            connection,
            """
            select direction, session_outcome, appointment_made, customer_link_status, customer_link_method
            from calls where id = 20001
            """,
            [("inbound", "appointment_booked", True, "linked", "phone_match")],
        )
        show_alerts(
            connection,
            [
                ("appointment_made_mismatch", 20001, True),
                ("inconsistent_customer_link", 20001, True),
                ("missing_direction", 20001, True),
            ],
        )

        title("A call follows its appointments")
        write(
            connection,
            """
            insert into appointments (id, company_id, call_id, source, created_at, updated_at)
            values (20001, 1, 20001, 'retell_webhook', localtimestamp, localtimestamp)
            """,
        )
        flags = "select session_outcome, appointment_made, appointment_link_status from calls where id = 20001"
        show(connection, flags, [("appointment_booked", True, "linked")])
        write(connection, "delete from appointments where id = 20001")
        show(connection, flags, [("appointment_removed", False, "unlinked")])

        title("What is old is repaired in batches; what cannot be decided goes to a person")
        guard("reconcile", expected=2)
        guard("incidents", "baseline")
        audit = guard_json("audit")
        left = {rule["rule"]: rule["violations"] for rule in audit["rules"]}
        expect(all(left[rule] == 0 for rule in DEFECTS if rule not in UNDECIDABLE), "what can be repaired counts zero")
        expect(audit["consistency_rate_pct"] >= 99.5, f"{audit['consistency_rate_pct']:.2f} % of calls are consistent")
        show(
            connection,
            """
            select reason, count(*) from guard.manual_review_queue
            where status = 'pending' group by reason order by reason
            """,
            [
                ("duplicate_booking", calls // 1000),
                ("missing_appointment", calls // 50),
                ("orphaned_appointment", calls // 100),
                ("overlapping_appointment", calls // 1000),
                ("tenant_mismatch", calls // 1000),
            ],
        )
        guard("incidents", "list", "--limit", "3")

        title("At enforce a bad write is refused")
        for rule in ENFORCED:
            guard_json("rules", "set", rule, "--mode", "enforce")
        refused(connection, "insert into appointments (company_id, call_id) values (2, 20001)", "ZG109")
        refused(connection, "update calls set direction = null where id = 20001", "ZG104")

        title("Everything is as it should be")
        guard("verify")

        title("What happened, in numbers: each with the query that gives it again")
        guard("report", "--date", "today", "--refresh")
        guard("kpis", "--days", "1", expected=2)
        page = PROJECT / "build" / "demo-report.html"
        page.parent.mkdir(exist_ok=True)
        guard("report", "--date", "today", "--format", "html", "--output", str(page))
        expect(page.stat().st_size > 0, f"the report as a page: {page.relative_to(PROJECT)}")


def _new_database(server: str, name: str) -> str:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    return psycopg.conninfo.make_conninfo(server, dbname=name)


def check_audit(calls: int) -> None:
    """Audit, and hold the counts against those of examples/legacy/README.md."""
    audit = guard_json("audit")
    table = Table("rule", "severity", box=None, header_style="bold", pad_edge=False)
    table.add_column("counted", justify="right")
    table.add_column("should be", justify="right")
    expected = {rule: calls // share if share else 0 for rule, share in DEFECTS.items()}
    for rule in audit["rules"]:
        table.add_row(rule["rule"], rule["severity"], str(rule["violations"]), str(expected[rule["rule"]]))
    console.print(table)
    console.print(f"{audit['total_calls']} calls, {audit['consistency_rate_pct']:.2f} % of them consistent")
    expect({r["rule"]: r["violations"] for r in audit["rules"]} == expected, "every rule counts exactly its defects")


def rows(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """A digest of every row of the application's, without the column that guard adds."""
    query = """
        select 'calls', md5(string_agg((to_jsonb(c) - 'guard_corrections')::text, ',' order by c.id)) from calls as c
        union all
        select 'appointments', md5(string_agg((to_jsonb(a) - 'guard_corrections')::text, ',' order by a.id))
        from appointments as a
    """
    return connection.execute(query).fetchall()


def show_alerts(connection: psycopg.Connection, expected: Sequence[tuple[str, int, bool]]) -> None:
    entity = expected[0][1]
    show(
        connection,
        f"""
        select alert_type, entity_id, auto_corrected
        from guard.data_consistency_alerts where entity_id = {entity} order by alert_type
        """,
        expected,
    )


def refused(connection: psycopg.Connection, statement: str, sqlstate: str) -> None:
    console.print(f"\n[bold cyan]=# {' '.join(statement.split())};[/bold cyan]")
    try:
        connection.execute(statement.encode())
    except psycopg.Error as error:
        console.print(f"[red]ERROR[/red]: {error.diag.sqlstate}: {error.diag.message_primary}")
        console.print(f"DETAIL: {error.diag.message_detail}\nHINT: {error.diag.message_hint}")
        if error.diag.sqlstate == sqlstate:
            return
    fail(f"expected the write to be refused with {sqlstate}")


if __name__ == "__main__":
    main()
