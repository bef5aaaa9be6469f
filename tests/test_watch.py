"""guard watch: from the committed contradiction to the incident, beside another, and when the connection is lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.catalog import execute, query
from tests.processes import invoke, start, wait_until

pytestmark = pytest.mark.slow

PHANTOM = """
    insert into public.calls (company_id, direction, appointment_made, session_outcome)
    select 1, 'inbound', true, 'appointment_booked' from generate_series(1, {0})
"""
STANDING = "select count(*) = {0} from guard.incidents where rule = 'missing_appointment' and status = 'open'"


@contextmanager
def watch(dsn: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A watch at work; it ends well when it is told to."""
    sessions = "select count(*) from pg_stat_activity where query ilike 'listen guard_pending' or state = 'idle'"
    before = query(dsn, sessions)[0][0]
    process = start(dsn, "watch", *options)
    wait_until(dsn, f"select ({sessions}) > {before}", process)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def prepare(dsn: str) -> None:
    execute(dsn, "insert into public.companies (id, name) values (1, 'A')", "update guard.rules set mode = 'observe'")


def test_from_the_contradiction_to_the_incident(database: str) -> None:
    prepare(database)
    with watch(database, "--json") as process:
        execute(database, PHANTOM.format(1))
        wait_until(database, STANDING.format(1), process)
        ((seconds,),) = query(
            database,
            "select extract(epoch from i.created_at - c.created_at)::float8"
            " from guard.incidents as i inner join public.calls as c on i.entity_id = c.id",
        )
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert 3 <= seconds <= 5  # the grace is 3 s
    assert (process.returncode, err) == (0, "")
    incident = json.loads(out)
    assert (incident["rule"], incident["severity"]) == ("missing_appointment", "critical")


def test_a_rule_that_fails_is_told_by_its_name(database: str) -> None:
    execute(database, "drop view guard.tenant_mismatch")
    with watch(database) as process:
        wait_until(database, "select exists (select from guard.incidents)", process)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    told = "critical  rule_failed  the view of tenant_mismatch fails, so that nothing is found by it\n"
    assert out.endswith(told), out


def test_two_watches_share_the_work(database: str) -> None:
    prepare(database)
    with watch(database) as one, watch(database) as other:
        execute(database, PHANTOM.format(300))
        wait_until(database, STANDING.format(300), one)
        for process in (one, other):
            process.terminate()
        printed = [process.communicate(timeout=30) for process in (one, other)]
    assert [process.returncode for process in (one, other)] == [0, 0]
    assert [err for _, err in printed] == ["", ""]
    assert query(database, "select count(*), max(occurrences) from guard.incidents") == [(300, 1)]
    assert query(database, "select count(*) from guard.pending_checks") == [(0,)]


def test_what_was_written_past_the_triggers_is_found(database: str) -> None:
    prepare(database)
    with watch(database) as process:
        execute(database, f"set session_replication_role = replica; {PHANTOM.format(1)}")
        wait_until(database, STANDING.format(1), process)


def test_a_connection_that_is_lost(database: str) -> None:
    """The watch says so, comes back, and nothing written meanwhile is missed."""
    prepare(database)
    with watch(database) as process:
        ended = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'guard'"
        execute(database, f"{ended} and datname = current_database()", PHANTOM.format(1))
        wait_until(database, STANDING.format(1), process)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.startswith("guard: watch: ")
    assert err.count("\n") == 1


def test_it_does_not_start_where_it_cannot_work(legacy: str) -> None:
    refused = invoke(legacy, "watch")
    assert refused.exit_code == 1
    assert "Guard is not installed in this database" in refused.stderr
    reader = invoke(f"{legacy}?options=-crole%3Dnobody_there", "watch")
    assert reader.exit_code == 1
