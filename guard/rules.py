"""The registry of rules: list it, and move a rule on the ladder together with its constraint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import psycopg

from guard import constraints, database, install, plan
from guard.database import Connection
from guard.errors import GuardError, from_database

#: Where calls stand that a rollout leaves out.
RUNG_BELOW = {"enforce": "correct", "correct": "observe", "observe": "off", "off": "off"}


class RuleState(TypedDict):
    """`constraint` is absent, invalid, unvalidated or in force; None for a rule that has none."""

    rule: str
    severity: str
    entity_type: str
    mode: str
    rollout_pct: int
    constraint: str | None
    description: str
    repair: str


class RuleDetails(RuleState):
    """A rule with all that is registered of it; times are in seconds."""

    errcode: str
    runbook: str
    repairable: bool
    enforceable: bool
    grace_seconds: float
    detection_window_seconds: float


class Move(TypedDict):
    """What a move did. `violations`: rows that stand in the way of the constraint; None if none was wanted."""

    rule: str
    mode: str
    rollout_pct: int
    constraint: str | None
    violations: int | None
    message: str | None


def listing(connection: Connection) -> list[RuleState]:
    """Every registered rule, the gravest first. Raises GuardError where guard is not installed."""
    database.require_installed(connection, "rules")
    rows = connection.execute(
        """
        select
            r.rule, r.severity, r.entity_type, r.mode, r.rollout_pct, guard.constraint_state(r.rule), r.description,
            r.repair
        from guard.rules as r
        order by array_position(array['critical', 'warning', 'info'], r.severity), r.rule
        """
    ).fetchall()
    return [
        {
            "rule": rule,
            "severity": severity,
            "entity_type": entity_type,
            "mode": mode,
            "rollout_pct": rollout,
            "constraint": constraint,
            "description": description,
            "repair": repair,
        }
        for rule, severity, entity_type, mode, rollout, constraint, description, repair in rows
    ]


def details(connection: Connection, rule: str) -> RuleDetails:
    """Everything registered of one rule. Raises GuardError for a rule that does not exist."""
    found = [r for r in listing(connection) if r["rule"] == rule]
    if not found:
        raise GuardError(f"There is no rule {rule!r}.", fix="guard rules list shows them.")
    row = connection.execute(
        """
        select
            r.errcode, r.runbook, r.repairable, r.enforceable, extract(epoch from r.grace)::float,
            extract(epoch from r.detection_window)::float
        from guard.rules as r
        where r.rule = %s
        """,
        (rule,),
    ).fetchone()
    assert row is not None  # noqa: S101  # it was listed a moment ago
    errcode, runbook, repairable, enforceable, grace, window = row
    return {
        **found[0],
        "errcode": errcode,
        "runbook": runbook,
        "repairable": repairable,
        "enforceable": enforceable,
        "grace_seconds": grace,
        "detection_window_seconds": window,
    }


def command(connection: Connection, rule: str) -> str:
    """The command that brings the rule's constraint in line with the mode that the rule has."""
    row = connection.execute(
        "select r.mode, r.rollout_pct, r.constraint_kind from guard.rules as r where r.rule = %s", (rule,)
    ).fetchone()
    assert row is not None  # noqa: S101  # the caller has read it from there
    mode, rollout, kind = row
    options = ("" if rollout == 100 else f" --rollout {rollout}") + (" --build-exclude" if kind == "exclude" else "")
    return f"guard rules set {rule} --mode {mode}{options}"


def move(
    dsn: str,
    rule: str,
    mode: str,
    rollout: int,
    *,
    build_exclude: bool = False,
    announce: Callable[[plan.TableLock], None] = lambda _: None,
) -> Move:
    """Set the mode, which takes effect at once, then bring the rule's constraint in line with it.

    A CHECK that accepts rows which the trigger let through may stay when a rule is lowered; another one, a unique index
    and an EXCLUDE constraint are removed. An EXCLUDE constraint keeps readers out while it is built: `announce` is told
    the lock before, and on a table that guard found it is built only if `build_exclude` says so.

    Raises psycopg errors with SQLSTATEs ZG010 to ZG015 for bad input, and GuardError where the mode is set and the
    constraint could not follow.
    """
    with database.connect(dsn) as connection:
        database.require_installed(connection, "rules")
        other = "select from guard.rules as r where r.rule = %s and r.constraint_kind is distinct from 'exclude'"
        if build_exclude and connection.execute(other, (rule,)).fetchone() is not None:
            raise GuardError(f"{rule} has no EXCLUDE constraint to build.", fix="Leave --build-exclude out.")
        # before anything that could have to wait: lowering a rule is how an operator stops it at once
        connection.execute("select guard.set_rule(%s, %s, %s)", (rule, mode, rollout))
        row = connection.execute(
            """
            select
                guard.constraint_wanted(r.rule), guard.constraint_yields(r.rule), r.constraint_kind = 'exclude',
                'public.' || r.entity_type || 's',
                exists (
                    select from guard.provenance as p
                    where p.kind = 'table' and p.relation = 'public.' || r.entity_type || 's'
                )
            from guard.rules as r
            where r.rule = %s
            """,
            (rule,),
        ).fetchone()
        assert row is not None  # noqa: S101  # it was set a moment ago
        wanted, yields, excludes, table, own = row
        before = constraints.state(connection, rule)
        sound = before == "in force" and rule not in constraints.drifted(connection)
        lock = plan.table_lock(connection, "ACCESS EXCLUSIVE", table) if excludes and wanted and not sound else None
        slipping = slipping_through(connection)
        again = command(connection, rule)
    result: Move = {
        "rule": rule,
        "mode": mode,
        "rollout_pct": rollout,
        "constraint": before,
        "violations": None,
        "message": None,
    }
    try:
        if lock is not None and not own and not build_exclude:
            result["message"] = (
                f"Its constraint guard_{rule} was not built, and the trigger looks instead. Building it keeps readers "
                f"and writers out of {lock['table']} ({plan.size(lock)}) until it is done: {again}"
            )
        elif wanted and not sound:
            if lock is not None:
                announce(lock)
            with install.exclusive(dsn) as session:
                _install(session, result)
        elif not wanted and before not in (None, "absent") and not (sound and yields):
            with install.exclusive(dsn) as session:
                constraints.remove(session.worker, session.observer, rule)
            result["constraint"] = "absent"
            result["message"] = f"Its constraint guard_{rule} was removed: it would refuse what the mode lets through."
    except (GuardError, psycopg.Error) as error:
        cause = error if isinstance(error, GuardError) else from_database(error)
        raise GuardError(
            f"{rule} now stands at {mode}, but its constraint guard_{rule} could not follow. {cause.message}",
            fix=cause.fix,
        ) from error
    if slipping:
        warning = (
            f"Two sessions at once may slip through {', '.join(slipping)} as long as inconsistent_link_status stands "
            "below correct for 100 %."
        )
        result["message"] = f"{result['message']} {warning}" if result["message"] else warning
    return result


def slipping_through(connection: Connection) -> list[str]:
    """The rules at enforce that rest on inconsistent_link_status, where that stands too low."""
    query = "select r.rule from guard.rules as r where r.mode = 'enforce' and guard.slips_through(r.rule) order by 1"
    return [row[0] for row in connection.execute(query).fetchall()]


def _install(session: install.Session, result: Move) -> None:
    rule = result["rule"]
    in_the_way = constraints.install(session.worker, session.observer, rule)
    result["constraint"] = constraints.state(session.worker, rule)
    result["violations"] = in_the_way
    if in_the_way:
        result["message"] = (
            f"{in_the_way} rows stand in the way of its constraint guard_{rule}, which was not installed. "
            f"The view guard.{rule} lists them; guard reconcile --rule {rule} repairs what can be repaired. "
            "Then run this command again."
        )
    else:
        result["message"] = f"Its constraint guard_{rule} is in force."
