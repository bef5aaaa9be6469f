"""Count every rule over the whole database, read-only, also where guard has never been installed.

Where guard is installed, and may be read, the rules' views are asked. Elsewhere the same queries are taken from the
rules' files, with what they use of guard's own replaced by what every server has: see `_standalone`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from psycopg import errors, sql

from guard import adoption, database, ledger
from guard.database import Connection
from guard.errors import GuardError

_SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True)
class Rule:
    """A rule as the audit sees it; `query` is a relation: a view's name or a parenthesised query."""

    name: str
    severity: str
    entity_type: str
    query: str


class RuleCount(TypedDict):
    """`violations` is None where the rule cannot be asked here; `note` then says why."""

    rule: str
    severity: str
    violations: int | None
    note: str | None


class Audit(TypedDict):
    """`consistency_rate_pct`: the share of calls that break no critical or warning rule about calls, 0 to 100.

    None if one of these rules cannot be asked.
    """

    total_calls: int
    total_appointments: int
    consistency_rate_pct: float | None
    rules: list[RuleCount]


def run(connection: Connection, own_rules: Path | None = None, app_timezone: str | None = None) -> Audit:
    """Count in one snapshot. `app_timezone` is the zone of local timestamps where guard is not installed.

    A rule that is installed is asked by its view, another one, such as a new one of an operator's own, by its file.

    Raises GuardError if the database has no table public.calls.
    """
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read read only")
        connection.execute("set local search_path = pg_catalog, pg_temp")
        # rows that a policy hides would be missing from the counts: better an error
        connection.execute("set local row_security = off")
        if not any(database.has_relation(connection, f"public.{table}") for table in ("calls", "appointments")):
            raise GuardError(
                "This database has neither public.calls nor public.appointments.",
                fix="Name the booking database with --dsn, or let guard apply create the tables.",
            )
        rules = _installed(connection) if _is_installed(connection) else []
        if app_timezone is not None:
            if obstacles := adoption.zone_obstacles(connection, app_timezone):
                raise GuardError(f"Guard cannot audit this: {obstacles[0].what}.", fix=obstacles[0].fix)
            connection.execute("select set_config('timezone', %s, true)", (app_timezone,))
        asked = {rule.name for rule in rules}
        files = [file for file in ledger.read_files(own_rules) if any(o.kind == "rule" for o in file.provides)]
        untimed = _missing_timestamps(connection)
        rules += [rule for rule in (_standalone(file, untimed) for file in files) if rule.name not in asked]
        counts = [_count(connection, rule) for rule in rules]
        unasked = {count["rule"] for count in counts if count["violations"] is None}
        return {
            "total_calls": _rows(connection, "calls"),
            "total_appointments": _rows(connection, "appointments"),
            "consistency_rate_pct": _consistency_rate(connection, rules, unasked),
            "rules": sorted(counts, key=lambda c: (_SEVERITIES.index(c["severity"]), c["rule"])),
        }


def violations(audit: Audit) -> int:
    """The number of violations of critical and warning rules."""
    return sum(count["violations"] or 0 for count in audit["rules"] if count["severity"] != "info")


def _is_installed(connection: Connection) -> bool:
    """Whether the registry is there, and this role may read it."""
    row = connection.execute(
        """
        select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
        from pg_catalog.pg_namespace as n
        inner join pg_catalog.pg_class as c on n.oid = c.relnamespace
        where n.nspname = 'guard' and c.relname = 'rules'
        """
    ).fetchone()
    return row == (True,)


def _installed(connection: Connection) -> list[Rule]:
    rows = connection.execute(
        """
        select r.rule, r.severity, r.entity_type, format('guard.%I', r.rule)
        from guard.rules as r
        where to_regclass(format('guard.%I', r.rule)) is not null
        """
    ).fetchall()
    return [Rule(*row) for row in rows]


def _missing_timestamps(connection: Connection) -> dict[str, list[str]]:
    """Which of created_at and updated_at a table lacks."""
    rows = connection.execute(
        """
        select t.name, array_agg(c.name)
        from unnest(array['public.calls', 'public.appointments']) as t (name)
        cross join unnest(array['created_at', 'updated_at']) as c (name)
        where to_regclass(t.name) is not null and not exists (
            select from pg_catalog.pg_attribute as a
            where a.attrelid = to_regclass(t.name) and a.attname = c.name and not a.attisdropped
        )
        group by t.name
        """
    ).fetchall()
    return dict(rows)


def _standalone(file: ledger.SqlFile, untimed: dict[str, list[str]]) -> Rule:
    """The rule of a file, its query rewritten to need nothing of guard's.

    guard.instant(x) becomes timestamptz(x), with the session in the application's time zone; guard.period becomes the
    range that it makes; guard.rules becomes one row with what the file registers. A timestamp that a table lacks is
    null, but where the rule is about the time since a row was made.
    """
    registered = file.registration
    view = re.search(
        r"create or replace view .*?\bas\s+((?:select|with)\b.*?);\s*$", file.text, re.DOTALL | re.MULTILINE
    )
    if (
        view is None
        or not {"rule", "entity_type"} <= registered.keys()
        or registered.get("severity") not in _SEVERITIES
    ):
        raise GuardError(f"{file.path} does not register a rule with a view.", fix="See CONTRIBUTING.md, Add a rule.")
    row = sql.SQL(
        "(select {rule}::text as rule, {severity}::text as severity, {grace}::interval as grace,"
        " {window}::interval as detection_window)"
    ).format(
        rule=registered["rule"],
        severity=registered["severity"],
        grace=registered.get("grace", "0"),
        window=registered.get("detection_window", "1 hour"),
    )
    query = view.group(1)
    for table, columns in untimed.items():
        nulls = [f"null::timestamptz as {c}" for c in columns if c == "updated_at" or "detection_window" not in query]
        query = query.replace(f"{table} as", f"(select {', '.join(['*', *nulls])} from {table}) as")  # noqa: S608
    query = query.replace("guard.instant(", "timestamptz(").replace("guard.rules", row.as_string())
    query = re.sub(r"guard\.period\(([^,()]+), ([^,()]+)\)", r"case when \1 < \2 then tstzrange(\1, \2) end", query)
    return Rule(registered["rule"], registered["severity"], registered["entity_type"], f"({query})")


def _count(connection: Connection, rule: Rule) -> RuleCount:
    count: RuleCount = {"rule": rule.name, "severity": rule.severity, "violations": None, "note": None}
    try:
        with connection.transaction():
            count["violations"] = _number(connection, f"select count(*) from {rule.query} as v")  # noqa: S608  # a view
    except (errors.UndefinedColumn, errors.UndefinedTable) as error:
        count["note"] = f"cannot be asked here: {error.diag.message_primary}"
    except errors.DatabaseError as error:
        count["note"] = f"failed: {error.diag.message_primary}"
    return count


def _rows(connection: Connection, table: str) -> int:
    if not database.has_relation(connection, f"public.{table}"):
        return 0
    return _number(connection, f"select count(*) from public.{table}")  # noqa: S608  # one of two constants


def _consistency_rate(connection: Connection, rules: list[Rule], unasked: set[str]) -> float | None:
    calls = [rule for rule in rules if rule.entity_type == "call" and rule.severity != "info"]
    if any(rule.name in unasked for rule in calls):
        return None
    queries = [f"select entity_id from {rule.query} as v" for rule in calls]  # noqa: S608  # views
    total = _rows(connection, "calls")
    if total == 0:
        return 100.0
    wrong = _number(connection, f"select count(distinct entity_id) from ({' union all '.join(queries)}) as v")  # noqa: S608
    return round(100 * (total - wrong) / total, 2)


def _number(connection: Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0
