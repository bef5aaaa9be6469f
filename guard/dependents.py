"""Whose objects a rollback would break: they are found in the catalog, and named, before the first change.

What goes is known from the ledger, from the provenance, and from the DROPs that the rollback files spell out. A table
that guard made is not among it: its rollback keeps it if anything needs it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from yoyo.migrations import Migration

from guard import migrations
from guard.database import Connection
from guard.errors import GuardError
from guard.ledger import SqlObject

#: What rollback files drop by name; a column as `table column`.
_DROPS = [
    ("relation", re.compile(r"\bdrop (?:table|sequence|index) (?:concurrently )?(?:if exists )?(\w+\.\w+)")),
    ("function", re.compile(r"\bdrop function (?:if exists )?(\w+\.\w+\([^)]*\))")),
    ("schema", re.compile(r"\bdrop schema (\w+)")),
    ("column", re.compile(r"\balter table (\w+\.\w+) drop column (\w+)")),
]
#: What they drop if the provenance says that guard added it.
_ADDED = re.compile(r"\bp\.kind = '(column|extension)'")

_STANDING = """
with recursive named (classid, objid, objsubid, goes) as (
    select o.classid, o.objid, o.objsubid, w.goes
    from unnest(%(kinds)s::text[], %(names)s::text[], %(goes)s::boolean[]) as w (kind, name, goes)
    cross join lateral (
        select 'pg_class'::regclass::oid, to_regclass(w.name)::oid, 0 where w.kind::text = any('{relation,view}')
        union all
        select 'pg_proc'::regclass, to_regprocedure(w.name)::oid, 0 where w.kind::text = any('{function,procedure}')
        union all
        select 'pg_namespace'::regclass, to_regnamespace(w.name)::oid, 0 where w.kind = 'schema'
        union all
        select 'pg_extension'::regclass, e.oid, 0
        from pg_catalog.pg_extension as e where w.kind = 'extension' and e.extname = w.name
        union all
        select 'pg_class'::regclass, a.attrelid, a.attnum
        from pg_catalog.pg_attribute as a
        where w.kind = 'column'
            and a.attrelid = to_regclass(split_part(w.name, ' ', 1)) and a.attname = split_part(w.name, ' ', 2)
        union all
        select 'pg_trigger'::regclass, t.oid, 0
        from pg_catalog.pg_trigger as t
        where w.kind = 'trigger'
            and t.tgrelid = to_regclass(split_part(w.name, ' ', 1)) and t.tgname = split_part(w.name, ' ', 2)
        union all
        select 'pg_constraint'::regclass, c.oid, 0
        from pg_catalog.pg_constraint as c
        where w.kind = 'rule' and c.conname = 'guard_' || w.name
            and c.conrelid in (to_regclass('public.calls'), to_regclass('public.appointments'))
        union all
        select 'pg_class'::regclass, to_regclass('public.guard_' || w.name)::oid, 0 where w.kind = 'rule'
    ) as o (classid, objid, objsubid)
    where o.objid is not null
),
-- a view is in the catalog twice: as a relation, and as the rule that is its query
depends as (
    select
        case when r.oid is null then d.classid else 'pg_class'::regclass::oid end as classid,
        coalesce(r.ev_class, d.objid) as objid,
        case when r.oid is null then d.objsubid else 0 end as objsubid,
        d.refclassid, d.refobjid, d.refobjsubid, d.deptype
    from pg_catalog.pg_depend as d
    left join pg_catalog.pg_rewrite as r
        on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and r.rulename = '_RETURN'
    where d.refobjid is distinct from r.ev_class
),
going (classid, objid, objsubid) as (
    select n.classid, n.objid, n.objsubid from named as n where n.goes
    union
    -- what goes along by itself
    select d.classid, d.objid, d.objsubid
    from going as g
    inner join depends as d on g.classid = d.refclassid and g.objid = d.refobjid
    where g.objsubid in (0, d.refobjsubid) and d.deptype <> 'n'
),
ours (classid, objid, objsubid) as (
    select g.classid, g.objid, g.objsubid from going as g
    union
    select n.classid, n.objid, n.objsubid from named as n
),
standing (classid, objid, objsubid, deptype, refclassid, refobjid, refobjsubid) as (
    select d.classid, d.objid, d.objsubid, d.deptype, g.*
    from going as g
    inner join depends as d on g.classid = d.refclassid and g.objid = d.refobjid
    where g.objsubid in (0, d.refobjsubid)
        and not exists (
            select from ours as o
            where o.classid = d.classid and o.objid = d.objid and o.objsubid in (0, d.objsubid)
        )
    union
    select d.classid, d.objid, d.objsubid, d.deptype, s.classid, s.objid, s.objsubid
    from standing as s
    inner join depends as d on s.classid = d.refclassid and s.objid = d.refobjid
    where s.objsubid in (0, d.refobjsubid)
)
select distinct on (what)
    pg_describe_object(s.classid, s.objid, s.objsubid) as what,
    pg_describe_object(s.refclassid, s.refobjid, s.refobjsubid) as needed
from standing as s
left join named as n on s.refclassid = n.classid and s.refobjid = n.objid and s.refobjsubid = n.objsubid
where s.deptype = 'n'
order by what, n.goes desc nulls last, needed
"""


def check(
    connection: Connection,
    dropped: Collection[SqlObject],
    kept: Iterable[SqlObject],
    undone: list[Migration],
    *,
    everything: bool,
) -> None:
    """Raise GuardError, naming them all, if objects of others depend on what a rollback removes.

    `dropped` and `kept` are the ledger's objects, `undone` the migrations to be rolled back.
    """
    going = [(o.kind, o.identity) for o in dropped]
    for text in map(migrations.rollback_text, undone):
        going += [(kind, " ".join(match.groups())) for kind, pattern in _DROPS for match in pattern.finditer(text)]
        going += connection.execute(
            """
            select p.kind, concat_ws(' ', p.relation, nullif(p.name, ''))
            from guard.provenance as p
            where p.kind = any(%s)
            """,
            (_ADDED.findall(text),),
        ).fetchall()
    if everything:
        going += [("schema", "guard"), *(("relation", f"guard.{table}") for table in migrations.LAST_TABLES)]
    named = [(*o, True) for o in going] + [(o.kind, o.identity, False) for o in kept]
    kinds, names, goes = ([row[i] for row in named] for i in range(3))
    rows = connection.execute(_STANDING.encode(), {"kinds": kinds, "names": names, "goes": goes}).fetchall()
    if rows:
        standing = "; ".join(f"{what} depends on {needed}" for what, needed in rows)
        raise GuardError(
            f"Guard cannot be rolled back: {standing}. Nothing was changed.",
            fix="Drop what depends on guard, or let it do without, then run the same command again.",
        )
