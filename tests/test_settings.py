"""A setting comes from the environment, else the file, else the table, else its default."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from guard import CircuitBreaker, GuardError, MemoryStore, RetryBudget, Settings, retry
from guard.settings import declared
from guard.webhooks import verify_retell
from tests.databases import RunGuard


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_setting(dsn: str, name: str, value: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select guard.set_setting(%s, %s)", (name, value))


def test_what_python_reads_is_what_the_database_is_given(database: str) -> None:
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "select name, default_value, unit, min_value::text, max_value::text, description from guard.settings"
        ).fetchall()
    found = {d.name: (d.default, d.unit, *(d.bounds or (None, None)), d.description) for d in declared().values()}
    zone = found.pop("app_timezone")
    assert zone[0] is None
    assert found == {name: tuple(rest) for name, *rest in rows if name != "app_timezone"}
    assert Settings.model_fields.keys() <= found.keys()


def test_the_defaults() -> None:
    settings = Settings.load()
    assert settings.breaker() == {"failure_threshold": 3, "success_threshold": 2, "cooldown": 30.0, "timeout": 10.0}
    retry_options: dict[str, object] = {**settings.retry()}
    assert isinstance(retry_options.pop("budget"), RetryBudget)
    assert retry_options == {"attempts": 4, "base_delay": 1.0, "max_delay": 8.0}
    assert (settings.per_service, settings.per_staff) == (True, False)


def test_the_environment_beats_the_file_beats_the_table_beats_the_default(
    database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("failure_threshold", "success_threshold", "cooldown_seconds"):
        set_setting(database, name, "7")
    (folder / "guard.toml").write_text("success_threshold = 8\ncooldown_seconds = 8.5\n")
    monkeypatch.setenv("GUARD_COOLDOWN_SECONDS", "9")
    monkeypatch.setenv("GUARD_PER_STAFF", "yes")
    settings = Settings.load(database)
    assert settings.breaker() == {"failure_threshold": 7, "success_threshold": 8, "cooldown": 9.0, "timeout": 10.0}
    assert settings.per_staff is True
    assert Settings.load().failure_threshold == 3  # without a database there is no table


def test_without_arguments_components_have_the_defaults() -> None:
    settings = Settings.load()

    def own(component: Callable[..., object]) -> dict[str, object]:
        return {name: p.default for name, p in inspect.signature(component).parameters.items()}

    assert own(CircuitBreaker).items() >= settings.breaker().items()
    assert own(retry)["base_delay"] == settings.base_delay_seconds
    assert own(retry)["max_delay"] == settings.max_delay_seconds
    assert own(RetryBudget)["capacity"] == settings.retry_budget
    assert own(RetryBudget)["per_second"] == settings.retry_budget_per_second
    assert own(verify_retell)["replay_window"] == settings.replay_window_seconds


def test_components_take_them() -> None:
    settings = Settings.load()
    breaker = CircuitBreaker("k", store=MemoryStore(), **settings.breaker())
    assert breaker.timeout == settings.timeout_seconds
    assert retry(**settings.retry())(lambda: 1)() == 1


def test_retry_keeps_to_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_RETRY_ATTEMPTS": 9, "MAX_DELAY_SECONDS": 3, "RETRY_BUDGET": 5}.items():
        monkeypatch.setenv(f"GUARD_{name}", str(value))
    monkeypatch.setenv("GUARD_RETRY_BUDGET_PER_SECOND", "0")
    slept: list[float] = []
    again = retry(**Settings.load().retry(), sleep=slept.append)

    @again
    def first() -> None:
        raise ConnectionError

    @again
    def second() -> None:
        raise ConnectionError

    for function, delays in ((first, [1, 2, 3, 3, 3]), (second, [])):
        slept.clear()
        with pytest.raises(ConnectionError):
            function()
        assert [int(delay) for delay in slept] == delays  # jitter adds up to a tenth


@pytest.mark.parametrize(("per_service", "per_staff"), [("true", "false"), ("false", "true"), ("false", "false")])
def test_the_circuit_of_a_booking_is_the_same_in_sql(database: str, per_service: str, per_staff: str) -> None:
    set_setting(database, "per_service", per_service)
    set_setting(database, "per_staff", per_staff)
    settings = Settings.load(database)
    for service, staff in ((7, 3), (7, None), (None, 3), (None, None)):
        with psycopg.connect(database) as connection:
            row = connection.execute("select guard.breaker_key(%s::bigint, %s::bigint)", (service, staff)).fetchone()
        assert row == (settings.breaker_key(service, staff),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cooldown_seconds = -1", "cooldown_seconds cannot be '-1', as the file says"),
        ("timeout_seconds = inf", "timeout_seconds cannot be 'inf'"),
        ("failure_threshold = 0", "failure_threshold cannot be '0'"),
        ("per_staff = 'perhaps'", "per_staff cannot be 'perhaps'"),
        ("failure_treshold = 5", "there is no setting 'failure_treshold'"),
        ("max_appointment_age_seconds = 5", "only SQL functions go by"),
        ("failure_threshold = ", "cannot be read"),
        ("[failure_threshold]\nx = 1", "failure_threshold cannot be"),
    ],
)
def test_a_file_that_cannot_be(folder: Path, text: str, message: str) -> None:
    (folder / "guard.toml").write_text(text)
    with pytest.raises(GuardError, match=message):
        Settings.load()


def test_an_environment_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_COOLDOWN_SECONDS", "soon")
    with pytest.raises(GuardError, match="cooldown_seconds cannot be 'soon', as the environment says"):
        Settings.load()
    monkeypatch.setenv("GUARD_COOLDOWN_SECONDS", "")  # as good as not set
    assert Settings.load().cooldown_seconds == 30
    monkeypatch.setenv("GUARD_LEASE_SECONDS", "20")
    with pytest.raises(GuardError, match="GUARD_LEASE_SECONDS sets lease_seconds, which only SQL functions go by"):
        Settings.load()


def test_a_table_that_cannot_be(database: str, guard: RunGuard) -> None:
    with psycopg.connect(database, autocommit=True) as connection:  # as an older version may have let through
        connection.execute("update guard.settings set value = '0' where name = 'failure_threshold'")
    with pytest.raises(GuardError, match="failure_threshold cannot be '0', as the table says") as refused:
        Settings.load(database)
    assert refused.value.fix == (
        "It is a whole number from 1 to 1000 (failures), by default 3. "
        "Correct it with guard settings set failure_threshold VALUE."
    )
    assert guard(database, "settings", "set", "failure_threshold", "4").returncode == 0
    assert Settings.load(database).failure_threshold == 4


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_range_is_the_same_wherever_the_value_comes_from(
    name: str, database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(value: str) -> None:
        set_setting(database, name, value)

    def file(value: str) -> None:
        (folder / "guard.toml").write_text(f"{name} = '{value}'")
        Settings.load()

    def environment(value: str) -> None:
        (folder / "guard.toml").unlink()
        with monkeypatch.context() as patch:
            patch.setenv(f"GUARD_{name.upper()}", value)
            Settings.load()

    def refused_by(value: str) -> list[str]:
        errors = {}
        for source in (table, file, environment):
            try:
                source(value)
            except (GuardError, psycopg.Error) as error:
                errors[source.__name__] = str(error)
        assert all(f"{name} cannot be" in error for error in errors.values()), errors
        return list(errors)

    bounds = declared()[name].bounds
    if bounds is None:
        possible, impossible = ["true", "false"], ["maybe", "2"]
    else:
        least, most = map(float, bounds)
        possible, impossible = list(bounds), [f"{least - 0.001:.6f}", f"{most + 0.001:.6f}", "-1", "1x", "nan", "inf"]
        if Settings.model_fields[name].annotation is int:
            impossible.append("1.5")
    assert {value: refused_by(value) for value in possible} == {value: [] for value in possible}
    all_refuse = ["table", "file", "environment"]
    assert {value: refused_by(value) for value in impossible} == dict.fromkeys(impossible, all_refuse)


def test_guard_config_names_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.toml").write_text("failure_threshold = 5")
    monkeypatch.setenv("GUARD_CONFIG", "other.toml")
    assert Settings.load().failure_threshold == 5
    monkeypatch.setenv("GUARD_CONFIG", "missing.toml")
    with pytest.raises(GuardError, match=r"There is no file missing\.toml"):
        Settings.load()


@pytest.mark.slow
def test_the_command(database: str, guard: RunGuard) -> None:
    changed = guard(database, "settings", "set", "cooldown_seconds", "60")
    assert changed.stdout == "cooldown_seconds is now 60 (seconds).\n"
    listed = guard(database, "settings", "list", "--json", GUARD_FAILURE_THRESHOLD="5", GUARD_COOLDOWN_SECONDS="90")
    found = {s["name"]: s for s in json.loads(listed.stdout)}
    assert {name: (s["value"], s["origin"], s["table_value"]) for name, s in found.items() if "threshold" in name} == {
        "failure_threshold": ("5", "environment", "3"),
        "success_threshold": ("2", "default", "2"),
    }
    assert found["cooldown_seconds"] == {
        "name": "cooldown_seconds",
        "value": "90",
        "unit": "seconds",
        "default": "30",
        "min_value": "0",
        "max_value": "86400",
        "origin": "environment",
        "table_value": "60",
        "description": declared()["cooldown_seconds"].description,
    }
    table = guard(database, "settings", "list", GUARD_COOLDOWN_SECONDS="90", COLUMNS="200").stdout
    assert "environment (SQL: 60)" in table
    with psycopg.connect(database) as connection:
        audited = connection.execute("select object from guard.audit_log where action = 'set_setting'").fetchall()
    assert audited == [("cooldown_seconds",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "cooldown", "60"), "there is no setting 'cooldown'"),
        (("set", "cooldown_seconds", "'; drop table calls; --"), "cooldown_seconds cannot be"),
        (("set", "cooldown_seconds", "-1"), "It is a number from 0 to 86400 (seconds), by default 30."),
        (("set", "failure_threshold", "0"), "It is a whole number from 1 to 1000 (failures), by default 3."),
        (("set", "per_staff", "2"), "It is true or false, by default false."),
    ],
)
def test_the_command_refuses(database: str, guard: RunGuard, arguments: tuple[str, ...], message: str) -> None:
    refused = guard(database, "settings", *arguments)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_where_guard_is_not_installed(legacy: str, guard: RunGuard) -> None:
    for arguments in (("list",), ("set", "per_staff", "true")):
        refused = guard(legacy, "settings", *arguments)
        assert (refused.returncode, "Run guard apply" in refused.stderr) == (1, True)
