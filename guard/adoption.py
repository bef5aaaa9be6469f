"""May guard be installed here? Everything that would stop it midway is found before the first change."""

from __future__ import annotations

from typing import NamedTuple

import psycopg
from psycopg import sql

from guard import ledger, migrations
from guard.database import Connection
from guard.errors import UnsuitableDatabaseError

MINIMUM_SERVER = 150000

_TEXT = ["text", "character varying", "character"]
_INTEGER = ["bigint", "integer"]
_TIME = ["timestamp without time zone", "timestamp with time zone"]
_BOOLEAN = ["boolean"]

#: The types that the columns of an adopted table may have; a column that is missing is added, but for REQUIRED.
COLUMN_TYPES: dict[str, dict[str, list[str]]] = {
    "companies": {"id": _INTEGER},
    "customers": {"id": _INTEGER},
    "services": {"id": _INTEGER},
    "staff": {"id": _INTEGER},
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

#: The words that guard writes into columns of calls once its rules correct.
WORDS: dict[str, list[str]] = {
    "direction": ["inbound"],
    "customer_link_status": ["linked"],
    "customer_link_method": ["phone_match"],
    "session_outcome": ["appointment_booked", "appointment_removed", "creation_failed"],
    "appointment_link_status": ["linked", "unlinked", "creation_failed"],
}

#: The tables that guard puts triggers on, and the columns of them that it does not add.
GUARDED = ("calls", "appointments")
REQUIRED = ("id", "company_id")


class Obstacle(NamedTuple):
    """What stands in the way, and what to do about it."""

    what: str
    fix: str


def check(connection: Connection, files: list[ledger.SqlFile], app_timezone: str | None = None) -> None:
    """Raise UnsuitableDatabaseError, with all that stands in the way, if guard cannot be installed as this role."""
    if found := obstacles(connection, files, app_timezone):
        fixes = dict.fromkeys(obstacle.fix for obstacle in found)
        raise UnsuitableDatabaseError(
            f"Guard cannot be installed here: {'; '.join(obstacle.what for obstacle in found)}. Nothing was changed.",
            fix=" ".join([*fixes, "Then run guard apply again."]),
        )


def obstacles(connection: Connection, files: list[ledger.SqlFile], app_timezone: str | None = None) -> list[Obstacle]:
    """All that stands in the way of installing guard as this role."""
    tables = _tables(connection)
    found = [
        *_server(connection),
        *zone_obstacles(connection, app_timezone),
        *_rights(connection, tables),
        *_columns(connection, tables),
        *_names(connection, files),
    ]
    return found or _words(connection)


def _tables(connection: Connection) -> list[str]:
    """The tables that must be as guard needs them: the guarded two, and what a table that is to be made refers to."""
    missing = connection.execute(
        "select from unnest(%s::text[]) as t (name) where to_regclass('public.' || t.name) is null",
        (list(COLUMN_TYPES),),
    ).fetchall()
    return list(COLUMN_TYPES if missing else GUARDED)


def _server(connection: Connection) -> list[Obstacle]:
    version = connection.info.server_version
    if version < MINIMUM_SERVER:
        what = f"the server is PostgreSQL {version // 10000}, and 15 is the oldest that is supported"
        return [Obstacle(what, "Upgrade the server.")]
    if connection.execute("select pg_is_in_recovery()").fetchone() == (True,):
        return [Obstacle("the server is a standby", "Connect to the primary.")]
    if connection.execute("select from pg_available_extensions where name = 'btree_gist'").fetchone() is None:
        return [Obstacle("the extension btree_gist is not available", "Install the server's contrib package.")]
    return []


def zone_obstacles(connection: Connection, name: str | None) -> list[Obstacle]:
    """That the server does not know the zone of this name, if it does not."""
    query = "select from pg_timezone_names where name = %s"
    if name is None or connection.execute(query, (name,)).fetchone() is not None:
        return []
    return [
        Obstacle(f"{name} is not a time zone that the server knows", "Use a name of pg_timezone_names: Europe/Berlin.")
    ]


def _rights(connection: Connection, tables: list[str]) -> list[Obstacle]:
    rows = connection.execute(
        """
        select
            format('%%I owns public.%%I, and %%I is not a member of it', r.rolname, c.relname, current_user),
            format('Connect as %%I, or grant it: grant %%1$I to %%I.', r.rolname, current_user)
        from pg_catalog.pg_class as c
        inner join pg_catalog.pg_roles as r on c.relowner = r.oid
        where c.relnamespace = 'public'::regnamespace and c.relname = any(%(tables)s::text[] || array['companies'])
            and not pg_has_role(current_user, c.relowner, 'usage')
        union all
        select
            format('public.%%I is not an ordinary table', c.relname),
            'Guard adopts ordinary tables, neither views nor partitioned ones.'
        from pg_catalog.pg_class as c
        where c.relnamespace = 'public'::regnamespace and c.relname = any(%(tables)s) and c.relkind <> 'r'
        union all
        select
            format(
                '%%I may not create roles, and there is no %%s',
                u.rolname, string_agg(wanted.rolname, ', ' order by wanted.position)
            ),
            format(
                'Have an administrator run: alter role %%I createrole; or: %%s; grant guard_owner to %%1$I.',
                u.rolname, string_agg('create role ' || wanted.rolname, '; ' order by wanted.position)
            )
        from pg_catalog.pg_roles as u
        cross join unnest(%(roles)s::text[]) with ordinality as wanted (rolname, position)
        where u.rolname = current_user and not (u.rolsuper or u.rolcreaterole)
            and not exists (select from pg_catalog.pg_roles as r where r.rolname = wanted.rolname)
        group by u.rolname
        union all
        select
            format('%%I is not a member of guard_owner, and may not grant it to itself', u.rolname),
            format('Have an administrator run: grant guard_owner to %%I.', u.rolname)
        from pg_catalog.pg_roles as u
        inner join pg_catalog.pg_roles as r on r.rolname = 'guard_owner'
        where u.rolname = current_user and not u.rolsuper
            and not pg_has_role(u.oid, r.oid, 'usage')
            and not pg_has_role(u.oid, r.oid, 'member with admin option')
            and not (u.rolcreaterole and current_setting('server_version_num')::integer < 160000)
        union all
        select
            format('%%I does not inherit the rights of the roles that it is a member of', r.rolname),
            format('Have an administrator run: alter role %%I inherit.', r.rolname)
        from pg_catalog.pg_roles as r where r.rolname = current_user and not (r.rolinherit or r.rolsuper)
        union all
        select
            format('%%I may not create a schema in this database', current_user),
            format('Have its owner run: grant create on database %%I to %%I.', current_database(), current_user)
        where to_regnamespace('guard') is null and not has_database_privilege(current_database(), 'create')
        union all
        select
            format('%%I may not create tables and indexes in schema public', current_user),
            format('Have its owner run: grant create on schema public to %%I.', current_user)
        where not has_schema_privilege('public', 'create')
        """,
        {"tables": tables, "roles": list(migrations.ROLES)},
    ).fetchall()
    return [Obstacle(*row) for row in rows]


def _columns(connection: Connection, tables: list[str]) -> list[Obstacle]:
    wrong: list[Obstacle] = []
    for table in tables:
        found: dict[str, str] = dict(
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
        wrong += [
            Obstacle(f"public.{table} has no column {name}", "Add what is missing.")
            for name in REQUIRED
            if name not in found and table in GUARDED
        ]
        wrong += [
            Obstacle(f"public.{table}.{name} is {found[name]}, and guard needs {types[0]}", "Change the column's type.")
            for name, types in COLUMN_TYPES[table].items()
            if name in found and found[name] not in types
        ]
        if len({found[name] for name in ("starts_at", "ends_at") if name in found}) > 1:
            what = f"public.{table}.starts_at and ends_at are of different types"
            wrong.append(Obstacle(what, "Give them one type."))
    return wrong


def _names(connection: Connection, files: list[ledger.SqlFile]) -> list[Obstacle]:
    """That something which guard did not make has a name that guard is about to give, if so.

    CREATE OR REPLACE and IF NOT EXISTS would take it for guard's own, and a rollback would drop it.
    """
    installed = migrations.is_installed(connection)
    known = ledger.entries(connection) if installed else {}
    new = [(file, o) for file in files for o in file.provides if o not in known]
    rules = [file.registration for file, o in new if o.kind == "rule" and "constraint_kind" in file.registration]
    query = "select concat_ws(' ', relation, nullif(name, '')) from guard.provenance"
    made = {row[0] for row in connection.execute(query).fetchall()} if installed else set()
    indexes = [name for migration in migrations.shipped() for name in migrations.index_names(migration)]
    rows = connection.execute(
        """
        select 'schema ' || n.nspname
        from pg_catalog.pg_namespace as n
        where (n.nspname = 'guard' and not %(installed)s)
            or (n.nspname = 'guard_bi' and pg_get_userbyid(n.nspowner) <> 'guard_owner')
        union all
        select format('trigger %%I on %%s', t.tgname, split_part(w.identity, ' ', 1))
        from unnest(%(triggers)s::text[]) as w (identity)
        inner join pg_catalog.pg_trigger as t
            on t.tgrelid = to_regclass(split_part(w.identity, ' ', 1)) and t.tgname = split_part(w.identity, ' ', 2)
        inner join pg_catalog.pg_proc as p on t.tgfoid = p.oid
        where p.pronamespace is distinct from to_regnamespace('guard')
        union all
        select format('constraint %%I on %%s', c.conname, w.relation)
        from unnest(%(constrained)s::text[], %(constraints)s::text[]) as w (relation, name)
        inner join pg_catalog.pg_constraint as c on c.conrelid = to_regclass(w.relation) and c.conname = w.name
        union all
        select 'index public.' || w.name
        from unnest(%(indexes)s::text[]) as w (name)
        where to_regclass('public.' || w.name) is not null
        union all
        select format('column guard_corrections of public.%%I', w.name)
        from unnest(%(guarded)s::text[]) as w (name)
        inner join pg_catalog.pg_attribute as a
            on a.attrelid = to_regclass('public.' || w.name) and a.attname = 'guard_corrections'
        """,
        {
            "installed": installed,
            "triggers": [o.identity for _, o in new if o.kind == "trigger"],
            "constrained": [f"public.{rule['entity_type']}s" for rule in rules],
            "constraints": [f"guard_{rule['rule']}" for rule in rules],
            "indexes": [
                *(name for name in indexes if f"public.{name}" not in made),
                *(f"guard_{rule['rule']}" for rule in rules if rule["constraint_kind"] == "unique"),
            ],
            "guarded": [table for table in GUARDED if f"public.{table} guard_corrections" not in made],
        },
    ).fetchall()
    names = ", ".join(row[0] for row in rows)
    what = f"guard needs names that something else has: {names}"
    return [Obstacle(what, "Rename or drop what has them.")] if rows else []


def _words(connection: Connection) -> list[Obstacle]:
    """What the application's own types and CHECKs say to the words that guard writes.

    Asked of CHECKs on one column: what one over several says depends on the row.
    """
    found: list[Obstacle] = []
    columns = connection.execute(
        """
        select
            a.attname, format_type(a.atttypid, a.atttypmod), nullif(a.atttypmod, -1) - 4 as length, r.rolname,
            coalesce(
                jsonb_object_agg(k.conname, pg_get_expr(k.conbin, k.conrelid)) filter (where k.oid is not null), '{}'
            )
        from pg_catalog.pg_attribute as a
        inner join pg_catalog.pg_class as c on a.attrelid = c.oid
        inner join pg_catalog.pg_roles as r on c.relowner = r.oid
        left join pg_catalog.pg_constraint as k
            on k.conrelid = c.oid and k.contype = 'c' and k.conkey = array[a.attnum] and k.conname !~ '^guard_'
        where c.oid = to_regclass('public.calls') and a.attname = any(%s) and not a.attisdropped
        group by a.attname, a.attnum, a.atttypid, a.atttypmod, r.rolname
        order by a.attnum
        """,
        (list(WORDS),),
    ).fetchall()
    for name, kind, length, owner, constraints in columns:
        for word in WORDS[name]:
            if length is not None and len(word) > length:
                found.append(Obstacle(f"public.calls.{name} is {kind}, too short for {word}", "Widen the column."))
            found += [
                Obstacle(
                    f"the constraint {constraint} refuses {word} in public.calls.{name}",
                    "Let the constraint allow the word.",
                )
                for constraint, expression in sorted(constraints.items())
                if _refuses(connection, owner, expression, name, word)
            ]
    return found


def _refuses(connection: Connection, owner: str, expression: str, column: str, word: str) -> bool:
    """Whether a CHECK of one column is false for a word; asked as the table's owner, whose code it may run."""
    query = sql.SQL("select ({}) is false from (select {}::text as {}) as calls").format(
        sql.SQL(expression),  # as the catalog prints it
        sql.Literal(word),
        sql.Identifier(column),
    )
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(sql.SQL("set local role {}").format(sql.Identifier(owner)))
            return connection.execute(query).fetchone() == (True,)
    except psycopg.Error:
        return False  # it cannot be asked on its own
