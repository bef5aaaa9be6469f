"""Jobs: never twice at once, each run recorded, what fails or dies is an incident; pg_cron, where it is there."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from guard import cron, verify
from tests.catalog import apply, execute, query, rollback
from tests.databases import temporary_server
from tests.processes import invoke, start, transaction, wait_until
from tests.test_breaker_pgbouncer import pooled  # noqa: F401  # a fixture

if TYPE_CHECKING:
    from tests.databases import RunGuard

pytestmark = pytest.mark.slow

RUNS = "select job, runner, status from guard.job_runs order by id"


def only(dsn: str, command: str) -> None:
    """Leave one job, `a_job`, that is due."""
    execute(
        dsn,
        "update guard.jobs set enabled = false",
        f"select guard.register_job('a_job', '* * * * *', '1 minute', $${command}$$, 'a test')",
        "update guard.jobs set updated_at = now() - interval '90 seconds' where job = 'a_job'",
    )


def not_across_the_end_of_a_minute() -> None:
    left = 60 - time.time() % 60
    if left < 15:
        time.sleep(left + 0.1)


def test_every_job_of_the_catalogue_runs(adopted: str) -> None:
    jobs = [job for (job,) in query(adopted, "select job from guard.jobs order by job")]
    for job in jobs:
        done = invoke(adopted, "jobs", "run", job, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["status"] == "succeeded"
    assert query(adopted, RUNS) == [(job, "manual", "succeeded") for job in jobs]
    assert query(adopted, "select count(*) from guard.job_runs where result is null") == [(0,)]


def test_what_the_commands_print(database: str) -> None:
    assert "Nothing runs the jobs yet" in invoke(database, "jobs", "list").stdout
    assert invoke(database, "jobs", "runs").stdout == "No job has run yet.\n"
    execute(database, "update guard.jobs set enabled = false")
    assert invoke(database, "tick").output == ""
    only(database, """select '{"n": 1}'::jsonb""")
    assert "a_job  succeeded" in invoke(database, "tick").stdout
    assert "n 1" in invoke(database, "jobs", "runs", "a_job").stdout
    assert "Nothing runs" not in invoke(database, "jobs", "list").stdout
    jobs = {job["job"]: job for job in json.loads(invoke(database, "jobs", "list", "--json").stdout)}
    assert (jobs["a_job"]["runner"], jobs["a_job"]["status"]) == ("tick", "succeeded")
    assert jobs["a_job"]["next_run"]
    assert jobs["detect"]["next_run"] is None
    unknown = invoke(database, "jobs", "run", "no_job")
    assert unknown.exit_code == 1
    assert "there is no job 'no_job' [ZG501]" in unknown.stderr


def test_an_operator_needs_no_other_rights(database: str) -> None:
    operator = f"{database}?options=-crole%3Dguard_operator"
    assert invoke(operator, "jobs", "run", "detect").exit_code == 0
    assert invoke(operator, "jobs", "run", "partitions").exit_code == 0
    assert invoke(operator, "tick").exit_code == 0


def test_a_pooler_is_no_obstacle(database: str, pooled: str) -> None:  # noqa: F811  # the fixture
    only(database, """select jsonb_build_object('more', count(*) = 0) from guard.job_runs where steps > 0""")
    for _ in range(5):
        assert invoke(pooled, "jobs", "run", "a_job").exit_code == 0
    assert query(database, "select distinct steps, status from guard.job_runs where id = 1") == [(2, "succeeded")]
    locks = "select count(*) from pg_locks where locktype = 'advisory' and database = %s::oid"
    oid = query(database, "select oid from pg_database where datname = current_database()")[0][0]
    assert query(database, locks, oid) == [(0,)]


def test_two_ticks_at_once(database: str) -> None:
    only(database, "select jsonb_build_object('slept', pg_sleep(2) is null)")
    not_across_the_end_of_a_minute()
    ticks = [start(database, "tick") for _ in range(2)]
    assert [process.wait(30) for process in ticks] == [0, 0]
    assert query(database, RUNS) == [("a_job", "tick", "succeeded")]


@pytest.mark.slow
def test_two_schedulers(database: str) -> None:
    """Also across the end of a minute no turn is taken twice, nor begun before the last is over."""
    only(database, "select jsonb_build_object('slept', pg_sleep(1) is null)")
    schedulers = [start(database, "scheduler") for _ in range(2)]
    wait_until(database, "select exists (select from guard.job_runs where status = 'succeeded')")
    if time.time() % 60 > 30:
        minutes = "select count(distinct date_trunc('minute', started_at)) > 1 from guard.job_runs"
        wait_until(database, minutes)
    for process in schedulers:
        process.terminate()
    assert [process.wait(30) for process in schedulers] == [0, 0]
    # a turn that comes while the one before is taken is skipped
    runs = "from guard.job_runs where status <> 'skipped'"
    assert query(database, f"select distinct status {runs}") == [("succeeded",)]
    assert query(database, f"select count(*) - count(distinct date_trunc('minute', started_at)) {runs}") == [(0,)]


def test_stopping_a_scheduler_waits_for_what_runs(database: str) -> None:
    only(database, "select jsonb_build_object('slept', pg_sleep(3) is null)")
    process = start(database, "scheduler")
    wait_until(database, "select exists (select from guard.job_runs where status = 'running')", process)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "a_job  succeeded" in out


def test_a_session_that_is_killed(database: str) -> None:
    """The run is known, it blocks nobody, and it is an incident until the job has run well."""
    only(database, "select jsonb_build_object('slept', pg_sleep(60) is null)")
    process = start(database, "jobs", "run", "a_job")
    wait_until(database, "select exists (select from guard.job_runs where status = 'running')", process)
    assert invoke(database, "jobs", "run", "a_job").exit_code == 1
    execute(
        database,
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and query like 'call guard.run_job%' and state = 'active'",
    )
    assert process.wait(30) == 1
    assert query(database, RUNS) == [("a_job", "manual", "running")]
    wait_until(database, "select guard.check_jobs() = 1")
    assert query(database, RUNS) == [("a_job", "manual", "crashed")]
    standing = "select fingerprint from guard.incidents where status <> 'resolved'"
    assert query(database, standing) == [("job_failed:job:a_job",)]
    only(database, "select null::jsonb")
    assert invoke(database, "jobs", "run", "a_job").exit_code == 0
    assert query(database, standing) == []


def test_a_client_that_is_killed(database: str) -> None:
    """What the server was told to do it does, and records."""
    only(database, "select jsonb_build_object('slept', pg_sleep(1) is null)")
    process = start(database, "jobs", "run", "a_job")
    wait_until(database, "select exists (select from guard.job_runs where status = 'running')", process)
    process.kill()
    process.wait(30)
    wait_until(database, "select exists (select from guard.job_runs where status = 'succeeded')")


def test_a_statement_timeout_is_a_failure(database: str) -> None:
    only(database, "select jsonb_build_object('slept', pg_sleep(60) is null)")
    done = invoke(f"{database}?options=-cstatement_timeout%3D300", "jobs", "run", "a_job", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"].startswith("57014: ")


def test_a_failing_job(database: str) -> None:
    """It stops no other; verify shows it until it runs well."""
    only(database, "select guard.nothing()")
    execute(
        database,
        "select guard.register_job('b_job', '* * * * *', '2 minutes', 'select null::jsonb', 'a test')",
        "update guard.jobs set updated_at = now() - interval '90 seconds' where job = 'b_job'",
    )
    ticked = invoke(database, "tick")
    assert ticked.exit_code == 2
    assert "a_job  failed" in ticked.stdout
    assert "b_job  succeeded" in ticked.stdout
    execute(database, "delete from guard.jobs where job = 'b_job'")
    with psycopg.connect(database, autocommit=True) as connection:
        assert verify.run(connection)["findings"] == [
            {
                "kind": "job",
                "object": "the job a_job failed: 42883: function guard.nothing() does not exist",
                "fix": "guard jobs run a_job",
            }
        ]
        only(database, "select null::jsonb")
        assert invoke(database, "jobs", "run", "a_job").exit_code == 0
        assert verify.run(connection)["ok"]


def test_a_stopped_scheduler_is_told_by_verify(database: str) -> None:
    only(database, "select null::jsonb")
    assert invoke(database, "tick").exit_code == 0
    execute(
        database,
        "update guard.jobs set updated_at = updated_at - interval '1 hour'",
        "update guard.job_runs set started_at = started_at - interval '1 hour'",
    )
    with psycopg.connect(database, autocommit=True) as connection:
        assert [(f["kind"], f["object"]) for f in verify.run(connection)["findings"]] == [
            ("job", "the job a_job is overdue: it is to run every 00:01:00")
        ]


def test_a_month_that_somebody_reads_is_left_for_another_day(database: str) -> None:
    execute(database, "select guard.ensure_alert_partitions('2020-01-01 UTC', 1)")
    months = "select count(*) from pg_class where relname ~ '^data_consistency_alerts_2020_\\d\\d$' and relispartition"
    with transaction(database, "select * from guard.data_consistency_alerts"):
        done = invoke(database, "jobs", "run", "partitions", "--json")
        assert json.loads(done.stdout)["result"] == {"made": 0, "dropped": 0, "deleted": 0, "blocked": 2}
        assert query(database, months) == [(2,)]
    assert invoke(database, "jobs", "run", "partitions").exit_code == 0
    assert query(database, months) == [(0,)]


@pytest.mark.slow
def test_pg_cron(guard: RunGuard) -> None:
    """Apply hands it the jobs, it runs them; verify sees what was changed by hand; rollback takes them out."""
    settings = "-c shared_preload_libraries=pg_cron -c cron.database_name=postgres"
    jobs = "select jobname, database, schedule, active from cron.job order by jobname"
    with temporary_server(settings) as server:
        address = f"postgresql://{server.user}@{server.host}:{server.port}"
        home, dsn = f"{address}/postgres", f"{address}/O'Neill"
        execute(home, 'create database "O\'Neill"', "create role plain login")
        assert not [line for line in apply(dsn) if "pg_cron" in line]
        assert "create extension pg_cron" in invoke(dsn, "jobs", "list").stdout
        execute(home, "create extension pg_cron")
        steps = json.loads(invoke(dsn, "plan", "--json").stdout)["steps"]
        assert len([step for step in steps if step["source"] == "pg_cron"]) == len(steps) > 0
        done = apply(dsn)
        assert "handed job detect to pg_cron" in done
        assert len(done) == len(steps)
        assert apply(dsn) == []
        handed = query(home, jobs)
        assert ("guard:O'Neill:pending_checks", "O'Neill", "* * * * *", True) in handed
        assert len(handed) == query(dsn, "select count(*) + 1 from guard.jobs")[0][0]

        with psycopg.connect(f"{address}/O'Neill?user=plain", autocommit=True) as connection:
            assert "pg_read_all_settings" in cron.obstacle(connection)
            execute(home, "grant pg_read_all_settings to plain")
            assert "may not execute cron.schedule_in_database" in cron.obstacle(connection)

        execute(home, "update cron.job set schedule = '0 0 1 1 *', active = false where jobname like '%detect'")
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert ("job", "apply would have changed job detect in pg_cron") in {
                (f["kind"], f["object"]) for f in verify.run(connection)["findings"]
            }
            assert apply(dsn) == ["changed job detect in pg_cron"]
            assert verify.run(connection) == {"ok": True, "findings": [], "notes": [], "unprobed": []}
        assert query(home, jobs) == handed

        # a minute, the grace of a start, and as much again
        ran = "select exists (select from guard.job_runs where runner = 'pg_cron' and status = 'succeeded')"
        for _ in range(4):
            if query(dsn, ran) == [(True,)]:
                break
            time.sleep(20)
        assert set(query(dsn, "select runner, status from guard.job_runs")) == {("pg_cron", "succeeded")}
        assert set(query(home, "select status from cron.job_run_details")) <= {("succeeded",), ("running",)}
        listed = json.loads(guard(dsn, "jobs", "list", "--json").stdout)
        assert any(job["in_pg_cron"] for job in listed)

        history = query(home, "select command from cron.job where jobname like '%cron_history'")[0][0]
        execute(home, "update cron.job_run_details set start_time = start_time - interval '15 days'", history)
        assert query(home, "select count(*) from cron.job_run_details where start_time < now() - interval '1 day'") == [
            (0,)
        ]

        assert "took job detect out of pg_cron" in rollback(dsn, everything=True)
        assert query(home, jobs) == []
