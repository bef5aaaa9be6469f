"""The ledger of replaceable SQL objects: every file under sql/, applied when its text changes.

A file declares what it makes in `-- provides: KIND IDENTITY` lines and is applied whole, in one transaction together
with its ledger rows. The ledger keeps every text ever applied and a fingerprint of what the catalog then held.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import errors, sql

from guard import assets, database
from guard.database import Connection
from guard.errors import GuardError, from_database

#: The folders under sql/, in the order in which they are applied; `rules` stands for an operator's own.
FOLDERS = ("functions", "checks", "rules", "triggers", "views", "jobs")

#: The named arguments of a rule's registration whose values are plain strings.
_REGISTERED = re.compile(r"\bp_(\w+)\s*=>\s*(?:'((?:[^']|'')*)'|\$\$(.*?)\$\$)", re.DOTALL)

_PROVIDES = re.compile(r"^-- provides: (function|procedure|view|trigger|rule|job) (\S.*)$", re.MULTILINE)


@dataclass(frozen=True, order=True)
class SqlObject:
    """An object in the catalog.

    Identities: a regprocedure, a qualified view or index, `table trigger`, `table constraint`, a rule's or job's name.
    """

    kind: str
    identity: str

    def __str__(self) -> str:
        return f"{self.kind} {self.identity}"


@dataclass(frozen=True)
class SqlFile:
    """One file of replaceable objects; `path` is relative to the project (`sql/checks/missing_direction.sql`)."""

    path: str
    text: str

    @cached_property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def provides(self) -> tuple[SqlObject, ...]:
        return tuple(SqlObject(kind, identity.strip()) for kind, identity in _PROVIDES.findall(self.text))

    @cached_property
    def registration(self) -> dict[str, str]:
        """What a rule's file registers, as far as it is written as strings: `{"rule": ..., "severity": ...}`."""
        found = _REGISTERED.findall(self.text)
        return {name: quoted.replace("''", "'") or dollar for name, quoted, dollar in found}

    @property
    def order(self) -> tuple[int, str]:
        """Files are applied in this order."""
        return FOLDERS.index(self.path.split("/")[-2]), self.path


def read_files(own_rules: Path | None = None) -> list[SqlFile]:
    """All files in the order in which they are applied; `own_rules` is a folder of an operator's own rules.

    Raises GuardError for a file without a `-- provides:` line and for an object that two files provide.
    """
    files = [
        _read(path, f"sql/{folder}/{path.name}") for folder in FOLDERS for path in (assets.SQL / folder).glob("*.sql")
    ]
    if own_rules is not None:
        files += [_read(path, f"rules/{path.name}") for path in own_rules.glob("*.sql")]
    files.sort(key=lambda file: file.order)
    owners: dict[SqlObject, str] = {}
    for file in files:
        for provided in file.provides:
            if provided in owners:
                raise GuardError(
                    f"{file.path} provides {provided}, and so does {owners[provided]}.",
                    fix="Name one of them otherwise.",
                )
            owners[provided] = file.path
    return files


def _read(path: Path, name: str) -> SqlFile:
    try:
        file = SqlFile(name, path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise GuardError(f"{name} is not UTF-8: {error.reason}.", fix="Save it as UTF-8.") from None
    if not file.provides:
        raise GuardError(
            f"{name} does not say what it provides.",
            fix="Start it with lines such as `-- provides: rule my_rule`.",
        )
    return file


#: What the catalog holds for each object; null where the object does not exist.
_FINGERPRINTS = """
select o.kind, o.identity, md5(
    case replace(o.kind, 'procedure', 'function')
        when 'function' then (
            select concat_ws(' ', pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl)
            from pg_catalog.pg_proc as p where p.oid = to_regprocedure(o.identity)
        )
        when 'view' then (
            select concat_ws(' ', pg_get_viewdef(c.oid), c.relowner::regrole, c.reloptions, c.relacl)
            from pg_catalog.pg_class as c where c.oid = to_regclass(o.identity) and c.relkind = 'v'
        )
        when 'trigger' then (
            select concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
            from pg_catalog.pg_trigger as t
            where t.tgrelid = to_regclass(split_part(o.identity, ' ', 1)) and t.tgname = split_part(o.identity, ' ', 2)
        )
        when 'index' then (
            select pg_get_indexdef(i.indexrelid)
            from pg_catalog.pg_index as i where i.indexrelid = to_regclass(o.identity)
        )
        when 'constraint' then (
            select replace(pg_get_constraintdef(c.oid), ' NOT VALID', '')
            from pg_catalog.pg_constraint as c
            where
                c.conrelid = to_regclass(split_part(o.identity, ' ', 1)) and c.conname = split_part(o.identity, ' ', 2)
        )
        when 'rule' then (
            select concat_ws(
                ' ', r.rule, r.severity, r.entity_type, r.errcode, r.description, r.repair, r.runbook, r.repairable,
                r.enforceable, r.constraint_kind, r.constraint_definition, r.probe
            )
            from guard.rules as r where r.rule = o.identity
        )
        when 'job' then (
            select concat_ws(' ', j.job, j.default_schedule, j.default_every, j.command, j.description)
            from guard.jobs as j where j.job = o.identity
        )
    end
)
from unnest(%s::text[], %s::text[]) as o (kind, identity)
"""


def fingerprints(connection: Connection, objects: Iterable[SqlObject]) -> dict[SqlObject, str | None]:
    """What the catalog holds now, as a digest for each object; None for an object that is not there."""
    wanted = list(objects)
    with connection.transaction():
        # definitions are printed relative to the search_path
        connection.execute("set local search_path = ''")
        rows = connection.execute(_FINGERPRINTS, ([o.kind for o in wanted], [o.identity for o in wanted])).fetchall()
    return {SqlObject(kind, identity): digest for kind, identity, digest in rows}


@dataclass(frozen=True)
class Entry:
    """What the ledger knows of one object."""

    path: str
    checksum: str
    fingerprint: str | None


#: What no file provides: indexes come with migrations, constraints with the modes of rules. The ledger knows them since
#: the migration named here.
ON_TABLES = ("index", "constraint")
ON_TABLES_SINCE = "0066.ledger-constraints"


def entries(connection: Connection) -> dict[SqlObject, Entry]:
    """The objects that files provide; empty where guard is not installed."""
    return {o: entry for o, entry in _recorded(connection).items() if o.kind not in ON_TABLES}


def on_tables(connection: Connection) -> dict[SqlObject, Entry]:
    """Guard's indexes and constraints on the application's tables, as they were made."""
    return {o: entry for o, entry in _recorded(connection).items() if o.kind in ON_TABLES}


def _recorded(connection: Connection) -> dict[SqlObject, Entry]:
    if not database.has_relation(connection, "guard.objects"):
        return {}
    rows = connection.execute(
        "select kind, identity, path, checksum, fingerprint from guard.objects where kind <> 'migration'"
    ).fetchall()
    return {SqlObject(kind, identity): Entry(*rest) for kind, identity, *rest in rows}


@dataclass
class Difference:
    """How the files, the ledger and the catalog differ; empty lists when they agree."""

    files: list[SqlFile]
    pending: list[SqlFile]
    drifted: list[SqlObject]
    missing: list[SqlObject]
    obsolete: list[SqlObject]
    orphaned: list[SqlObject]

    @property
    def to_apply(self) -> list[SqlFile]:
        """The files to apply, in order: the pending ones, and those whose objects are not as they were applied."""
        stale = {*self.drifted, *self.missing}
        return [file for file in self.files if file in self.pending or stale.intersection(file.provides)]


def compare(connection: Connection, files: list[SqlFile]) -> Difference:
    """Tell pending (file is not ledger) from drifted and missing (ledger is not catalog).

    What no file provides any more is obsolete if the file that did is there, else orphaned: it may be a rule of an
    operator's own.
    """
    ledger = entries(connection)
    provided = {o for file in files for o in file.provides}
    paths = {file.path for file in files}
    left = [o for o in ledger if o not in provided]
    pending = [
        file for file in files if any(o not in ledger or ledger[o].checksum != file.checksum for o in file.provides)
    ]
    found = fingerprints(connection, ledger) if ledger else {}
    return Difference(
        files=files,
        pending=pending,
        drifted=[o for o, e in ledger.items() if found[o] is not None and found[o] != e.fingerprint],
        missing=[o for o in ledger if found[o] is None],
        obsolete=[o for o in left if ledger[o].path in paths],
        orphaned=[o for o in left if ledger[o].path not in paths],
    )


def apply_file(connection: Connection, file: SqlFile, run_id: int) -> None:
    """Apply one file and log its text, in the caller's transaction."""
    restore_file(connection, file)
    log(connection, run_id, file.path, file.checksum, file.text)


def restore_file(connection: Connection, file: SqlFile) -> None:
    """Apply a file whose text the log holds already, in the caller's transaction.

    Triggers that it no longer provides are dropped with it, so that none fires twice or with what it does not know.
    Other objects that it no longer provides stay: later files may still use them.
    """
    drop(
        connection,
        [
            o
            for o, entry in entries(connection).items()
            if o.kind == "trigger" and entry.path == file.path and o not in file.provides
        ],
    )
    try:
        with connection.transaction():
            _execute(connection, file)
    except (errors.InvalidTableDefinition, errors.InvalidFunctionDefinition):
        # a view cannot lose a column, nor a function change its result, by being replaced
        drop(connection, [o for o in file.provides if o.kind in ("view", "function", "procedure")])
        _execute(connection, file)
    record(connection, file.path, file.checksum, file.provides)


def record(connection: Connection, path: str, checksum: str, objects: Iterable[SqlObject]) -> None:
    """Keep the fingerprints of what a file has made."""
    for provided, fingerprint in fingerprints(connection, objects).items():
        if fingerprint is None:
            raise GuardError(f"{path} says that it provides {provided}, and does not.", fix="Correct the file.")
        connection.execute(
            """
            insert into guard.objects (kind, identity, path, checksum, fingerprint)
            values (%s, %s, %s, %s, %s)
            on conflict (kind, identity) do update
            set path = excluded.path, checksum = excluded.checksum, fingerprint = excluded.fingerprint,
                applied_at = clock_timestamp()
            """,
            (provided.kind, provided.identity, path, checksum, fingerprint),
        )


def _execute(connection: Connection, file: SqlFile) -> None:
    # guard's objects belong to guard_owner; a function may call one that a later file brings
    connection.execute("set local role guard_owner")
    connection.execute("set local check_function_bodies = off")
    _revoke_all(connection, file.provides)
    try:
        connection.execute(file.text.encode())
    except psycopg.Error as error:
        if position := error.diag.statement_position:
            line = file.text.count("\n", 0, int(position)) + 1
            raise from_database(error, f"{file.path}, line {line}") from error
        raise
    connection.execute("reset role")


def _revoke_all(connection: Connection, objects: Iterable[SqlObject]) -> None:
    """Take back every right on functions and views: the file grants again what it means to grant."""
    identities = (
        [o.identity for o in objects if o.kind in ("function", "procedure")],
        [o.identity for o in objects if o.kind == "view"],
    )
    rows = connection.execute(
        """
        select format(
            'revoke all on %%s from %%s cascade',
            o.name, case when o.grantee = 0 then 'public' else o.grantee::regrole::text end
        )
        from (
            select 'routine ' || p.oid::regprocedure as name, p.proowner as owner, a.grantee
            from pg_catalog.pg_proc as p
            cross join lateral aclexplode(p.proacl) as a
            where p.oid in (select to_regprocedure(i.identity) from unnest(%s::text[]) as i (identity))
            union
            select 'table ' || c.oid::regclass, c.relowner, a.grantee
            from pg_catalog.pg_class as c
            cross join lateral aclexplode(c.relacl) as a
            where c.oid in (select to_regclass(i.identity) from unnest(%s::text[]) as i (identity))
        ) as o (name, owner, grantee)
        where o.grantee <> o.owner
        """,
        identities,
    ).fetchall()
    for (statement,) in rows:
        connection.execute(statement.encode())


def log(connection: Connection, run_id: int, path: str, checksum: str, body: str | None) -> None:
    """Keep the text that was applied; no text says that the file's objects were dropped."""
    connection.execute(
        "insert into guard.object_log (run_id, path, checksum, body) values (%s, %s, %s, %s)",
        (run_id, path, checksum, body),
    )


def drop(connection: Connection, objects: Iterable[SqlObject]) -> None:
    """Drop objects, where they are there, and their ledger rows, in the caller's transaction.

    They may depend on each other; fails if anything else depends on them.
    """
    wanted = list(objects)
    for statement in drop_statements(connection, wanted):
        connection.execute(statement.encode())
    connection.execute(
        """
        delete from guard.objects as o
        using unnest(%s::text[], %s::text[]) as d (kind, identity)
        where o.kind = d.kind and o.identity = d.identity
        """,
        ([o.kind for o in wanted], [o.identity for o in wanted]),
    )


def drop_statements(connection: Connection, objects: Iterable[SqlObject]) -> list[str]:
    """What drops the objects, in order: one statement for all views, one for all functions."""
    by_kind: dict[str, list[str]] = {"trigger": [], "rule": [], "job": [], "view": [], "procedure": [], "function": []}
    for o in objects:
        by_kind[o.kind].append(o.identity)
    statements = []
    for table, name in (identity.split(" ") for identity in by_kind["trigger"]):
        if database.has_relation(connection, table):
            statements.append(f"drop trigger if exists {name} on {table}")
    for kind in ("rule", "job"):
        for name in by_kind[kind]:
            delete = sql.SQL("delete from guard.{} where {} = {}")
            statements.append(
                delete.format(sql.Identifier(f"{kind}s"), sql.Identifier(kind), sql.Literal(name)).as_string()
            )
    for kind in ("view", "procedure", "function"):
        if by_kind[kind]:
            statements.append(f"drop {kind} if exists {', '.join(by_kind[kind])}")
    return statements


def texts_as_of(connection: Connection, run_id: int) -> list[SqlFile]:
    """The files as they were after a run, in the order in which they are applied, leaving out what was undone since."""
    rows = connection.execute(
        """
        select distinct on (l.path) l.path, l.body
        from guard.object_log as l
        inner join guard.apply_runs as r on l.run_id = r.id
        where l.run_id <= %s and r.undone_at is null
        order by l.path, l.id desc
        """,
        (run_id,),
    ).fetchall()
    files = [SqlFile(path, body) for path, body in rows if body is not None]
    return sorted(files, key=lambda file: file.order)
