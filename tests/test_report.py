"""The report in its formats, opened in a real browser; the KPIs and the list of views by the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import port_for
import psycopg
import pytest
from pytest_postgresql.executors import PostgreSQLExecutor

from guard import report as reporting
from guard.errors import GuardError
from tests.browser import Browser
from tests.catalog import execute, query
from tests.databases import RunGuard

pytestmark = pytest.mark.slow

#: What a careless page would run.
SCRIPT = "<script>document.title='taken over'</script>"


@pytest.fixture
def busy(adopted: str) -> str:
    """A day on which everything happened that a report tells of; its rules and circuits have names that are code."""
    execute(
        adopted,
        "select guard.set_setting('app_timezone', 'Europe/Berlin')",
        """
        insert into guard.incidents (fingerprint, rule, severity, entity_type, entity_id, company_id, description,
            occurred_at, first_seen_at)
        select v.rule || ':call:' || v.entity_id, v.rule, v.severity, 'call', v.entity_id, v.company_id, 'x',
            now() - interval '5 seconds', now() - interval '2 seconds'
        from guard.current_violations('call') as v
        """,
        """
        insert into guard.data_consistency_alerts (alert_type, severity, entity_type, entity_id, company_id,
            description, detected_at, auto_corrected, corrected_at)
        select 'missing_direction', 'warning', 'call', g, 1, 'x', now() - g * interval '1 hour', g % 5 > 0, now()
        from generate_series(1, 300) as g
        """,
        "insert into guard.validation_metrics (success, duration_ms) select true, g from generate_series(1, 120) as g",
        f"insert into guard.circuit_breaker_states (circuit_key, state) values ($${SCRIPT}$$, 'open')",
        """
        insert into guard.circuit_breaker_events (circuit_key, event, from_state, to_state, generation, created_at)
        values ('a', 'transition', 'closed', 'open', 1, now() - interval '40 seconds'),
            ('a', 'transition', 'half_open', 'closed', 2, now() - interval '1 second')
        """,
        f"update guard.rules set description = $$1 < 2 & {SCRIPT}$$ where rule = 'missing_direction'",
        "select guard.queue_review(1, 'appointment_validation_failed')",
    )
    return adopted


def made(dsn: str, day: str = "today") -> reporting.Report:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return reporting.get(connection, day)


def test_html_in_a_browser(busy: str, guard: RunGuard, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    written = guard(busy, "report", "--date", "today", "--format", "html", "--output", str(page))
    assert (written.returncode, written.stdout) == (0, ""), written.stderr
    report = made(busy)
    facts = {
        "title": "document.title",
        "scripts": "document.scripts.length",
        "charts": "document.querySelectorAll('svg[role=img]').length",
        "bars": "[...document.querySelectorAll('svg .bar rect')].filter("
        "r => r.getBoundingClientRect().height > 1).length",
        "text": "document.body.innerText",
        "overflow": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
        "smallest": "Math.min(...[...document.querySelectorAll('main *')].filter("
        "e => e.innerText && !e.children.length).map(e => parseFloat(getComputedStyle(e).fontSize)))",
        "outside": "[...document.querySelectorAll('main *')].filter("
        "e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))",
        "rows": "document.querySelectorAll('section[aria-labelledby=kpis] tbody tr').length",
        "unlabelled": "[...document.querySelectorAll('section')].filter(s =>"
        " !document.getElementById(s.getAttribute('aria-labelledby'))).length",
    }
    with Browser() as browser:
        for width in (1280, 375, 320):
            seen = browser.open(page, width, facts)
            assert seen.requests == [page.as_uri()]  # neither a font nor a script nor a picture from elsewhere
            assert seen.complaints == []
            found = seen.facts
            assert found["title"] == f"Data consistency report, {report['date']}"
            assert (found["scripts"], found["charts"], found["rows"], found["unlabelled"]) == (0, 4, 7, 0)
            assert found["bars"] > 10
            assert (found["overflow"], found["outside"]) == (0, []), width
            assert found["smallest"] >= 12
            for text in (f"The circuit {SCRIPT} is not closed.", f"1 < 2 & {SCRIPT}", "Validation p95", "114.05 ms"):
                assert text in found["text"]


def test_html_of_a_day_without_anything(database: str, tmp_path: Path) -> None:
    report = made(database)
    page = tmp_path / "report.html"
    page.write_text(reporting.as_html(report), encoding="utf-8")
    with Browser() as browser:
        seen = browser.open(
            page, 375, {"text": "document.body.innerText", "charts": "document.querySelectorAll('svg').length"}
        )
    assert seen.facts["charts"] == 0
    for text in ("Nothing to do.", "Nothing to show.", "not measured", "Nothing found and nothing standing"):
        assert text in seen.facts["text"]


def test_text_has_the_parts_that_its_users_know(busy: str, guard: RunGuard) -> None:
    text = guard(busy, "report", "--date", "today").stdout
    report = made(busy)
    lines = text.splitlines()
    assert lines[0] == f"DATA CONSISTENCY REPORT - {report['date']}"
    parts = ["SUMMARY", "INCONSISTENCY BREAKDOWN", "TOP ISSUES", "TREND ANALYSIS", "KPIS", "ACTION ITEMS"]
    assert [line for line in lines if line in parts] == parts
    assert f"  Inconsistencies found  {report['totals']['found']:>10}" in text
    breakdown = lines[lines.index("INCONSISTENCY BREAKDOWN") + 1 : lines.index("TOP ISSUES") - 1]
    found = [int(line.split()[1]) for line in breakdown]
    assert found == sorted(found, reverse=True)
    assert "None" not in text


def test_json_is_the_stored_report(busy: str, guard: RunGuard) -> None:
    printed = json.loads(guard(busy, "report", "--date", "today", "--json").stdout)
    stored = query(busy, "select report from guard.daily_reports")[0][0]
    assert printed == stored


def test_junit_fails_where_something_stands(busy: str, guard: RunGuard) -> None:
    suites = ElementTree.fromstring(guard(busy, "report", "--date", "today", "--format", "junit").stdout)  # noqa: S314  # our own
    (suite,) = suites
    report = made(busy)
    cases = suite.findall("testcase")
    assert len(cases) == len(report["rules"]) + len(report["kpis"]) == int(suite.attrib["tests"])
    failed = {case.attrib["name"] for case in cases if case.find("failure") is not None}
    assert failed == {r["rule"] for r in report["rules"] if r["standing"] and r["severity"] != "info"} | {
        k["kpi"] for k in report["kpis"] if k["met"] is False
    }
    assert len(failed) == int(suite.attrib["failures"])
    assert {case.attrib["name"] for case in cases if case.find("skipped") is not None} == {
        k["kpi"] for k in report["kpis"] if k["met"] is None
    }


def test_a_rule_that_fails_is_shown_and_stops_nothing(busy: str) -> None:
    execute(
        busy,
        "drop view guard.missing_direction",
        "create view guard.missing_direction with (security_invoker = true) as"
        " select rule, severity, 'call' as entity_type, (1 / length(left(rule, 0)))::bigint as entity_id,"
        " 1::bigint as company_id, now() as occurred_at, '{}'::jsonb as details"
        " from guard.rules where rule = 'missing_direction'",
        "grant select on guard.missing_direction to guard_owner",
    )
    report = made(busy)
    assert [rule["rule"] for rule in report["rules"] if rule["error"]] == ["missing_direction"]
    assert next(rule for rule in report["rules"] if rule["rule"] == "missing_appointment")["standing"]
    assert report["action_items"][0]["what"].startswith("The rule missing_direction could not be asked")
    assert "22012" in reporting.as_text(report)
    assert '<error type="rule_failed"' in reporting.as_junit(report)
    assert "22012" in reporting.as_html(report)


def test_a_stored_report_stays_until_it_is_refreshed(busy: str, guard: RunGuard) -> None:
    first = made(busy, "yesterday")
    execute(busy, "delete from calls where id in (select id from calls order by id limit 900)")
    assert made(busy, "yesterday") == first
    refreshed = json.loads(guard(busy, "report", "--json", "--refresh").stdout)
    assert refreshed["date"] == first["date"]
    assert refreshed["generated_at"] > first["generated_at"]
    today = made(busy)
    assert made(busy)["generated_at"] > today["generated_at"]  # its day is not over


@pytest.mark.parametrize("day", ["2026-02-30", "20260131", "tomorrow", "", "2026-1-1x"])
def test_what_is_not_a_day(database: str, day: str) -> None:
    with pytest.raises(GuardError, match="is not a day"):
        made(database, day)


def test_bad_input_is_one_line(database: str, guard: RunGuard, tmp_path: Path) -> None:
    for arguments, words in (
        (("report", "--date", "2999-01-01"), "ZG702"),
        (("report", "--date", "yesterdya"), "is not a day"),
        (("report", "--output", str(tmp_path / "none" / "report.txt")), "No such file or directory"),
        (("kpis", "--from", "2026-02-01", "--to", "2026-01-01"), "ZG701"),
        (("kpis", "--company", "7"), "ZG703"),
        (("kpis", "--from", "2026-02-31"), "is no moment"),
        (("views", "nothing"), "There is no view 'nothing'"),
    ):
        failed = guard(database, *arguments)
        assert (failed.returncode, failed.stdout) == (1, ""), arguments
        assert words in failed.stderr
        assert "Traceback" not in failed.stderr


def test_kpis_by_the_command(busy: str, guard: RunGuard) -> None:
    missed = guard(busy, "kpis", "--days", "3", "--json")
    assert missed.returncode == 2
    found: dict[str, dict[str, Any]] = {kpi["kpi"]: kpi for kpi in json.loads(missed.stdout)}
    assert (found["validation_p95"]["value"], found["validation_p95"]["met"]) == (114.05, False)
    assert (found["breaker_recovery"]["value"], found["breaker_recovery"]["met"]) == (39.0, True)
    assert found["queue_size"]["value"] == 1
    assert "114.05 ms" in guard(busy, "kpis").stdout
    # a moment without a zone is the application's: in Berlin the day began earlier than in UTC
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    with_zone = guard(busy, "kpis", "--from", f"{hour_ago:%Y-%m-%dT%H:%M:%S}+00:00", "--json")
    without = guard(busy, "kpis", "--from", f"{hour_ago:%Y-%m-%dT%H:%M:%S}", "--json")
    periods = [json.loads(run.stdout)[1]["source"].split("created_at >= ")[1][:22] for run in (with_zone, without)]
    assert periods[0] == f"'{hour_ago:%Y-%m-%d %H:%M:%S}+0"
    assert periods[1] < periods[0]


def test_nothing_to_measure_is_not_missed(database: str, guard: RunGuard) -> None:
    result = guard(database, "kpis")
    assert result.returncode == 0
    assert len([line for line in result.stdout.splitlines() if "not measured" in line]) == 6


def test_views_with_their_comments(database: str, guard: RunGuard) -> None:
    listed = json.loads(guard(database, "views", "--json").stdout)
    assert len(listed) == query(database, "select count(*) from pg_views where schemaname = 'guard_bi'")[0][0]
    assert all(view["comment"] and all(column["comment"] for column in view["columns"]) for view in listed)
    assert "guard_bi.call_consistency" in guard(database, "views").stdout
    for name in ("dates", "guard_bi.dates"):
        assert "iso_week" in guard(database, "views", name).stdout


def test_what_the_command_says_without_guard(legacy: str, guard: RunGuard) -> None:
    for command in ("report", "kpis", "views"):
        failed = guard(legacy, command)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert "Guard is not installed in this database. Run guard apply." in failed.stderr


@pytest.fixture
def standby(busy: str, server: PostgreSQLExecutor) -> Iterator[str]:
    """A hot standby of the suite's server, with what `busy` holds and its report."""
    made(busy, "yesterday")
    with tempfile.TemporaryDirectory(prefix="guard-standby-") as folder:
        data = Path(folder) / "data"
        backup = ["pg_basebackup", f"--pgdata={data}", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        subprocess.run([*backup, f"--dbname={busy}"], check=True, capture_output=True)
        if os.geteuid() == 0:
            for path in (Path(folder), data, *data.rglob("*")):
                shutil.chown(path, "postgres", "postgres")
        port = port_for.select_random()
        pg_ctl = str(Path(__file__).with_name("pg_ctl-as-postgres"))
        options = f"-c port={port} -c hot_standby=on -c unix_socket_directories={folder}"
        start = [pg_ctl, "start", "-w", "-D", str(data), "-l", f"{folder}/log", "-o", options]
        subprocess.run(start, check=True, capture_output=True, timeout=120)
        try:
            yield f"postgresql://{server.user}@127.0.0.1:{port}/{busy.rpartition('/')[2]}"
        finally:
            subprocess.run([pg_ctl, "stop", "-m", "immediate", "-D", str(data)], check=True, capture_output=True)


@pytest.mark.slow
def test_a_hot_standby_serves_views_kpis_and_stored_reports(standby: str, busy: str, guard: RunGuard) -> None:
    assert query(standby, "select pg_is_in_recovery()") == [(True,)]
    for (view,) in query(standby, "select viewname from pg_views where schemaname = 'guard_bi'"):
        assert query(standby, f"select count(*) from guard_bi.{view}") == query(
            busy, f"select count(*) from guard_bi.{view}"
        )
    assert guard(standby, "kpis", "--json").returncode == 2
    assert made(standby, "yesterday") == made(busy, "yesterday")
    refused = guard(standby, "report", "--date", "2026-01-01")
    assert refused.returncode == 1
    assert "There is no report of 2026-01-01 on this hot standby" in refused.stderr
