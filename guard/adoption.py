"""May guard be installed here? Everything that would stop it midway is found before the first change."""

from __future__ import annotations

from guard.database import Connection
from guard.errors import UnsuitableDatabaseError

MINIMUM_SERVER = 150000

_TEXT = ["text", "character varying", "character"]
_INTEGER = ["bigint", "integer"]
_TIME = ["timestamp without time zone", "timestamp with time zone"]
_BOOLEAN = ["boolean"]

#: The types that the columns of an adopted table may have; a column that is missing will be added, but for the first
#: two of each table.
COLUMN_TYPES: dict[str, dict[str, list[str]]] = {
    "calls": {
        "id": _INTEGER,
        "company_id": _INTEGER,
        "retell_call_id": _TEXT,
        "direction": _TEXT,
        "customer_id": _INTEGER,
        "customer_link_status": _TEXT,
        "customer_link_method": _TEXT,
        "customer_link_confidence": ["numeric", "real", "double precision", *_INTEGER],
        "customer_linked_at": _TIME,
        "session_outcome": _TEXT,
        "appointment_made": _BOOLEAN,
        "appointment_link_status": _TEXT,
        "appointment_linked_at": _TIME,
        "booking_id": _TEXT,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    "appointments": {
        "id": _INTEGER,
        "company_id": _INTEGER,
        "call_id": _INTEGER,
        "staff_id": _INTEGER,
        "calcom_v2_booking_id": _TEXT,
        "source": _TEXT,
        "status": _TEXT,
        "starts_at": _TIME,
        "ends_at": _TIME,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
}


def check(connection: Connection) -> None:
    """Raise UnsuitableDatabaseError, with all that stands in the way, if guard cannot be installed as this role."""
    obstacles = [*_server(connection), *_rights(connection), *_columns(connection)]
    if obstacles:
        raise UnsuitableDatabaseError(
            "Guard cannot be installed here: " + "; ".join(obstacles) + ". Nothing was changed.",
            fix="Mend this, or connect as the role that owns the tables, then run guard apply again.",
        )


def _server(connection: Connection) -> list[str]:
    version = connection.info.server_version
    if version < MINIMUM_SERVER:
        return [f"the server is PostgreSQL {version // 10000}, and 15 is the oldest that is supported"]
    if connection.execute("select pg_is_in_recovery()").fetchone() == (True,):
        return ["the server is a standby; connect to the primary"]
    if connection.execute("select from pg_available_extensions where name = 'btree_gist'").fetchone() is None:
        return ["the extension btree_gist is not available; install the server's contrib package"]
    return []


def _rights(connection: Connection) -> list[str]:
    rows = connection.execute(
        """
        select format('%%I owns public.%%I, and %%I is not a member of it', r.rolname, c.relname, current_user)
        from pg_catalog.pg_class as c
        inner join pg_catalog.pg_roles as r on c.relowner = r.oid
        where c.relnamespace = 'public'::regnamespace and c.relname = any(%s)
            and not pg_has_role(current_user, c.relowner, 'usage')
        union all
        select format('public.%%I is not a table', c.relname)
        from pg_catalog.pg_class as c
        where c.relnamespace = 'public'::regnamespace and c.relname = any(%s) and c.relkind <> 'r'
        union all
        select format('%%I may not create roles, and %%s does not exist', current_user, wanted.rolname)
        from unnest(array['guard_owner', 'guard_app', 'guard_operator', 'guard_reader', 'guard_monitor'])
            as wanted (rolname)
        where not exists (select from pg_catalog.pg_roles as r where r.rolname = wanted.rolname)
            and not exists (
                select from pg_catalog.pg_roles as r
                where r.rolname = current_user and (r.rolsuper or r.rolcreaterole)
            )
        union all
        select format('%%I may not create a schema in this database', current_user)
        where not has_database_privilege(current_database(), 'create')
        """,
        (list(COLUMN_TYPES), list(COLUMN_TYPES)),
    ).fetchall()
    return [row[0] for row in rows]


def _columns(connection: Connection) -> list[str]:
    obstacles = []
    for table, columns in COLUMN_TYPES.items():
        found = dict(
            connection.execute(
                """
                select a.attname, format_type(a.atttypid, null)
                from pg_catalog.pg_attribute as a
                where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
                """,
                (f"public.{table}",),
            ).fetchall()
        )
        if not found:
            continue
        obstacles += [f"public.{table} has no column {name}" for name in ("id", "company_id") if name not in found]
        obstacles += [
            f"public.{table}.{name} is {found[name]}, and guard needs {types[0]}"
            for name, types in columns.items()
            if name in found and found[name] not in types
        ]
    return obstacles
