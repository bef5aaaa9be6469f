"""The thresholds: each from the environment, else a file, else the table guard.settings, else its default.

    settings = Settings.load(dsn)
    breaker = CircuitBreaker(service_key(7), store=store, **settings.breaker())

What there is to set, with units, defaults and ranges, is declared in `sql/functions/settings.sql`. SQL functions see
the table only; the fields of `Settings` are what Python reads too.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pydantic import ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from guard import assets, database
from guard.breaker import GLOBAL_KEY, service_key, staff_key
from guard.database import Connection
from guard.errors import GuardError
from guard.retrying import RetryBudget

PREFIX = "GUARD_"
#: The file that is read, in the working folder, unless GUARD_CONFIG names another.
FILE = "guard.toml"


class BreakerOptions(TypedDict):
    """Arguments of CircuitBreaker; times in seconds."""

    failure_threshold: int
    success_threshold: int
    cooldown: float
    timeout: float


class RetryOptions(TypedDict):
    """Arguments of retry; delays in seconds."""

    attempts: int
    base_delay: float
    max_delay: float
    budget: RetryBudget


class Listed(TypedDict):
    """A setting as `guard settings list` shows it.

    `min_value` and `max_value` are None where it is no number. `origin` is environment, file, table or default.
    `table_value` is what SQL functions go by, whatever the origin.
    """

    name: str
    value: str
    unit: str
    default: str
    min_value: str | None
    max_value: str | None
    origin: str
    table_value: str
    description: str


class Changed(TypedDict):
    """A setting as it stands in the table after a change."""

    name: str
    value: str
    unit: str


class Settings(BaseSettings):
    """What Python's components go by. Names, units and meanings: `guard settings list`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    failure_threshold: int
    success_threshold: int
    cooldown_seconds: float
    timeout_seconds: float
    per_service: bool
    per_staff: bool
    max_retry_attempts: int
    base_delay_seconds: float
    max_delay_seconds: float
    retry_budget: int
    retry_budget_per_second: float
    replay_window_seconds: float

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: float, field: ValidationInfo) -> float:
        bounds = declared()[str(field.field_name)].bounds
        if bounds and not float(bounds[0]) <= value <= float(bounds[1]):
            raise ValueError
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load` reads the sources one by one, to know which a value is from

    @classmethod
    def load(cls, dsn: str | None = None) -> Settings:
        """Read the environment, the file and, given a `dsn`, the table of that database, now and once.

        Raises GuardError for a value or a name that cannot be, and where the database or its settings are not there.
        """
        if dsn is None:
            return _settled(_layers([]))
        with database.connect(dsn) as connection:
            return _settled(_layers(_rows(connection)))

    def breaker(self) -> BreakerOptions:
        """`CircuitBreaker(key, store=store, **settings.breaker())`."""
        return {
            "failure_threshold": self.failure_threshold,
            "success_threshold": self.success_threshold,
            "cooldown": self.cooldown_seconds,
            "timeout": self.timeout_seconds,
        }

    def retry(self) -> RetryOptions:
        """`again = retry(deadline=60, **settings.retry())`: all that `again` decorates shares one budget."""
        return {
            "attempts": 1 + self.max_retry_attempts,
            "base_delay": self.base_delay_seconds,
            "max_delay": self.max_delay_seconds,
            "budget": RetryBudget(self.retry_budget, self.retry_budget_per_second),
        }

    def breaker_key(self, service_id: int | None = None, staff_id: int | None = None) -> str:
        """The circuit that a booking belongs to; as guard.breaker_key in SQL."""
        if staff_id is not None and self.per_staff:
            return staff_key(staff_id)
        if service_id is not None and self.per_service:
            return service_key(service_id)
        return GLOBAL_KEY


@dataclass(frozen=True)
class Declaration:
    """A setting as sql/functions/settings.sql declares it.

    Without a default it starts as the server's own; `bounds` are the least and the greatest value of a number.
    """

    name: str
    default: str | None
    unit: str
    bounds: tuple[str, str] | None
    description: str


@functools.cache
def declared() -> dict[str, Declaration]:
    """Every setting that there is, by name."""
    text = (assets.SQL / "functions" / "settings.sql").read_text(encoding="utf-8")
    literal, number = r"'((?:[^']|'')*)'", r"(?:([\d.]+)|null)"
    rows = re.findall(
        rf"\(\s*{literal},\s*(?:{literal}|current_setting\('\w+'\)),\s*{literal},\s*{number},\s*{number},\s*{literal}\s*\)",
        text.partition("\ninsert into guard.settings")[2],
    )
    found: dict[str, Declaration] = {}
    for row in rows:
        name, default, unit, least, most, description = (column.replace("''", "'") for column in row)
        found[name] = Declaration(name, default or None, unit, (least, most) if least else None, description)
    return found


def listing(connection: Connection) -> list[Listed]:
    """Every setting, by name. Raises GuardError where guard is not installed, and as `Settings.load`."""
    rows = _rows(connection)
    layers = _layers(rows)
    _settled(layers)
    found: list[Listed] = []
    for name, in_table, default, unit, min_value, max_value, description in rows:
        origin = next(origin for origin, values in layers.items() if name in values)
        value = layers[origin][name]
        found.append(
            {
                "name": name,
                "value": str(value).lower() if isinstance(value, bool) else str(value),
                "unit": unit,
                "default": default,
                "min_value": min_value,
                "max_value": max_value,
                "origin": origin,
                "table_value": in_table,
                "description": description,
            }
        )
    return found


def change(connection: Connection, name: str, value: str) -> Changed:
    """Change a setting in the table; audited. Raises psycopg errors with SQLSTATEs ZG001 to ZG003 for bad input."""
    database.require_installed(connection, "settings")
    row = connection.execute("select name, value, unit from guard.set_setting(%s, %s)", (name, value)).fetchone()
    assert row is not None  # noqa: S101  # the function returns the row that it changed
    return {"name": row[0], "value": row[1], "unit": row[2]}


Row = tuple[str, str, str, str, str | None, str | None, str]
Layers = dict[str, dict[str, Any]]


def _rows(connection: Connection) -> list[Row]:
    """Name, value, default, unit, least and greatest value, and description of each row of the table."""
    database.require_installed(connection, "settings")
    return connection.execute(
        "select s.name, s.value, s.default_value, s.unit, s.min_value::text, s.max_value::text, s.description"
        " from guard.settings as s order by s.name"
    ).fetchall()


def _layers(rows: list[Row]) -> Layers:
    """The values that each source gives, the source that counts most first."""
    declarations = declared()
    for name in declarations.keys() - Settings.model_fields.keys():
        for variable, value in os.environ.items():
            if value and variable.lower() == f"{PREFIX}{name}".lower():
                raise _for_sql_only(variable, name)
    return {
        "environment": EnvSettingsSource(Settings)(),
        "file": _file(declarations),
        "table": {name: value for name, value, default, *_ in rows if value != default},
        "default": {d.name: d.default for d in declarations.values()}
        | {name: value for name, value, default, *_ in rows if value == default},
    }


def _file(declarations: dict[str, Declaration]) -> dict[str, Any]:
    named = os.environ.get("GUARD_CONFIG")
    path = Path(named or FILE)
    if named and not path.is_file():
        raise GuardError(f"There is no file {named}.", fix="Correct GUARD_CONFIG, or unset it.")
    try:
        values = TomlConfigSettingsSource(Settings, path)()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise GuardError(f"{path} cannot be read: {error}.", fix="Write it as TOML: failure_threshold = 5.") from error
    for name in values.keys() - Settings.model_fields.keys():
        if name in declarations:
            raise _for_sql_only(str(path), name)
        raise GuardError(f"{path}: there is no setting {name!r}.", fix="guard settings list shows them.")
    return values


def _for_sql_only(where: str, name: str) -> GuardError:
    return GuardError(
        f"{where} sets {name}, which only SQL functions go by: they see the table, and nothing else.",
        fix=f"Remove it there, and use guard settings set {name} VALUE.",
    )


def _settled(layers: Layers) -> Settings:
    values: dict[str, Any] = {}
    for layer in reversed(layers.values()):
        values |= {name: value for name, value in layer.items() if name in Settings.model_fields}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        origin = next(origin for origin, layer in layers.items() if name in layer)
        raise GuardError(
            f"{name} cannot be {str(first['input'])[:60]!r}, as the {origin} says.",
            fix=f"It is {_requirement(declared()[name])}. {_correction(origin, name)}",
        ) from None


def _requirement(declaration: Declaration) -> str:
    if declaration.bounds is None:
        return f"true or false, by default {declaration.default}"
    whole = "whole " if Settings.model_fields[declaration.name].annotation is int else ""
    least, most = declaration.bounds
    return f"a {whole}number from {least} to {most} ({declaration.unit}), by default {declaration.default}"


def _correction(origin: str, name: str) -> str:
    return {
        "environment": f"Correct {PREFIX}{name.upper()}, or unset it.",
        "file": f"Correct it in {os.environ.get('GUARD_CONFIG') or FILE}, or remove it.",
    }.get(origin, f"Correct it with guard settings set {name} VALUE.")
