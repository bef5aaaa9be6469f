"""guard simulate: what stands at the end is what was injected, or what the mode leaves of it; nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import conninfo

from guard.cli.base import State
from guard.cli.simulate import show
from guard.simulation.runs import MODES, Result, Simulation
from guard.simulation.stream import FAULTS, Stream, plan
from tests.databases import GUARD, Databases, RunGuard, temporary_server

STREAM = Stream(calls=300, fault_rate=0.3, seed=1, sessions=4)
REPAIRED = {rule for broken in FAULTS.values() for rule in broken} - {"tenant_mismatch", "orphaned_appointment"}


@pytest.fixture(scope="module")
def user_database(databases: Databases) -> Iterator[str]:
    """What the user names: it must not change."""
    dsn = databases.create()
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def simulation(user_database: str, guard: RunGuard) -> Simulation:
    """What the command prints, of every mode."""
    modes = [argument for mode in MODES for argument in ("--guard", mode)]
    stream = ["--calls", str(STREAM.calls), "--fault-rate", str(STREAM.fault_rate), "--seed", str(STREAM.seed)]
    ran = guard(user_database, "simulate", "--json", *stream, *modes)
    assert ran.returncode == 0, ran.stderr
    printed: Simulation = json.loads(ran.stdout)
    return printed


def of_mode(simulation: Simulation, mode: str) -> Result:
    return next(result for result in simulation["runs"] if result["guard"] == mode)


def violations(result: Result) -> dict[str, int]:
    """The rules about contradictions that count any; a booking that failed is a fact."""
    return {r["rule"]: r["violations"] for r in result["rules"] if r["violations"] and r["severity"] != "info"}


def test_the_seed_decides_the_plan() -> None:
    assert plan(STREAM) == plan(STREAM)
    assert plan(STREAM) != plan(Stream(calls=300, fault_rate=0.3, seed=2, sessions=4))


@pytest.mark.slow
def test_without_guard_every_fault_stands(simulation: Simulation) -> None:
    assert all(simulation["faults"].values())
    expected: Counter[str] = Counter()
    for fault, calls in simulation["faults"].items():
        for rule in FAULTS[fault]:
            expected[rule] += calls
    result = of_mode(simulation, "off")
    assert violations(result) == expected
    assert (result["repaired"], result["refused"], result["queued"], result["detected"]) == (0, 0, 0, 0)


@pytest.mark.slow
def test_observe_repairs_nothing_and_finds_all(simulation: Simulation) -> None:
    result = of_mode(simulation, "observe")
    # guard's own handler of webhooks knows what it has handled, in any mode
    without = dict(violations(of_mode(simulation, "off")))
    without["duplicate_booking"] -= simulation["faults"]["webhook delivered twice"]
    assert violations(result) == without
    assert (result["repaired"], result["refused"]) == (0, 0)
    # and now and then what lasts for the moment between an appointment and its flags
    assert result["detected"] >= sum(without.values())


@pytest.mark.slow
def test_at_correct_a_person_gets_what_cannot_be_repaired(simulation: Simulation) -> None:
    result, faults = of_mode(simulation, "correct"), simulation["faults"]
    left = {
        "tenant_mismatch": faults["appointment of another company"],
        "orphaned_appointment": faults["appointment of an unknown booking"],
    }
    assert violations(result) == left
    queued = {r["rule"]: r["queued"] for r in result["rules"] if r["queued"]}
    assert queued == left | {"missing_appointment": faults["phantom booking"]}
    assert result["consistency_rate_pct"] >= 99.5
    assert result["webhooks_recognised"] == faults["webhook delivered twice"]
    assert result["detection_p95_seconds"] is not None
    repaired = {r["rule"]: r["repaired"] for r in result["rules"]}
    for rule, fault in {
        "missing_direction": "direction left out",
        "inconsistent_customer_link": "customer half linked",
        "appointment_made_mismatch": "flag set, outcome abandoned",
        "missing_appointment": "phantom booking",
        "orphaned_appointment": "appointment without its call",
    }.items():
        assert repaired[rule] == faults[fault], rule


@pytest.mark.slow
def test_at_enforce_nothing_wrong_is_written(simulation: Simulation) -> None:
    result, faults = of_mode(simulation, "enforce"), simulation["faults"]
    assert violations(result) == {}
    # what is not refused never comes to be: a call follows a deleted appointment, a webhook is handled once
    harmless = faults["appointment deleted, flags left"] + faults["webhook delivered twice"]
    assert result["refused"] == sum(faults.values()) - harmless


@pytest.mark.slow
def test_the_users_database_is_left_alone(simulation: Simulation, user_database: str) -> None:
    assert all(simulation["faults"].values())
    with closing(psycopg.connect(user_database)) as connection:
        assert connection.execute(
            "select count(*) from pg_class where relnamespace in (to_regnamespace('public'), to_regnamespace('guard'))"
        ).fetchone() == (0,)
    assert leftovers(user_database) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(lone_server: str, number: int) -> None:
    command = [GUARD, "--dsn", lone_server, "simulate", "--calls", "100000", "--guard", "correct"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            wait_for_calls(lone_server)
            os.kill(process.pid, number)
            process.wait(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 1
    assert leftovers(lone_server) == []


@pytest.fixture(scope="module")
def lone_server() -> Iterator[str]:
    """A server that nobody has installed guard on, so that its roles are the simulation's."""
    with temporary_server() as server:
        yield conninfo.make_conninfo(host=server.host, port=server.port, user=server.user, dbname="postgres")


def leftovers(dsn: str) -> list[str]:
    """The simulation's databases; on a server without guard, the roles too."""
    with closing(psycopg.connect(dsn)) as connection:
        rows = connection.execute(
            """
            select datname::text from pg_database where datname like 'guard_simulation%'
            union all
            select rolname from pg_roles
            where rolname like 'guard%' and not exists (select from pg_database where datname like 'test%')
            """
        ).fetchall()
    return [row[0] for row in rows]


def wait_for_calls(dsn: str) -> None:
    """Until the stream is being played."""
    query = "select datname from pg_database where datname like 'guard_simulation%_1'"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
        with closing(psycopg.connect(dsn)) as connection:
            found = connection.execute(query).fetchone()
            if found is None:
                continue
        with closing(psycopg.connect(conninfo.make_conninfo(dsn, dbname=found[0]))) as copy:
            if copy.execute("select exists (select from public.calls)").fetchone() == (True,):
                return
    pytest.fail("the stream never began")


@pytest.mark.slow
def test_modes_stand_side_by_side(simulation: Simulation, capsys: pytest.CaptureFixture[str]) -> None:
    off, correct = of_mode(simulation, "off"), of_mode(simulation, "correct")
    show(State(None, False, False), STREAM, {"faults": simulation["faults"], "runs": [off, correct]})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "rule off correct repaired refused for a person" in lines
    assert "guard off correct" in lines
    assert f"calls consistent {off['consistency_rate_pct']:.2f} % 100.00 %" in lines
    assert f"violations {off['violations']} {correct['violations']}" in lines


@pytest.mark.parametrize(
    "arguments",
    [("--calls", "0"), ("--fault-rate", "1.5"), ("--fault-rate", "nan"), ("--seed", "-1"), ("--guard", "on")],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, str], guard: RunGuard) -> None:
    ran = guard(None, "simulate", *arguments)
    assert ran.returncode == 1
    assert f"Invalid value for '{arguments[0]}'" in ran.stderr.splitlines()[-1]


def test_a_role_that_may_not_create_databases_is_told_so(user_database: str, guard: RunGuard) -> None:
    with closing(psycopg.connect(user_database, autocommit=True)) as connection:
        connection.execute("create role visitor login")
        try:
            ran = guard(conninfo.make_conninfo(user_database, user="visitor"), "simulate")
        finally:
            connection.execute("drop role visitor")
    assert ran.returncode == 1
    assert "this role may not create one" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
