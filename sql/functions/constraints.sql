-- provides: function guard.constraint_state(text)
-- provides: function guard.constraint_yields(text)
-- provides: function guard.constraint_wanted(text)
-- provides: function guard.constraint_statements(text, boolean)
-- provides: function guard.constraint_object(text)
-- provides: function guard.record_constraint(text, text)
-- provides: function guard.index_in_force(text)
-- provides: function guard.is_enforced(text)
-- provides: function guard.take_turns(text, bigint[])
--
-- The table constraint of a rule is named guard_<rule>. It stands on the application's own table, so the table's
-- owner runs the statements, each in a transaction of its own: a function cannot.

-- absent, invalid (a build that was cut short), unvalidated, or in force; null for a rule that has none.
create or replace function guard.constraint_state(p_rule text)
returns text
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case r.constraint_kind
        when 'unique' then coalesce(
            (
                select case when i.indisvalid then 'in force' else 'invalid' end
                from pg_catalog.pg_index as i
                where i.indexrelid = to_regclass('public.guard_' || r.rule)
            ),
            'absent'
        )
        when 'check' then coalesce(
            (
                select case when c.convalidated then 'in force' else 'unvalidated' end
                from pg_catalog.pg_constraint as c
                where c.conrelid = to_regclass('public.' || r.entity_type || 's') and c.conname = 'guard_' || r.rule
            ),
            'absent'
        )
        when 'exclude' then case
            when exists (
                select from pg_catalog.pg_constraint as c
                where c.conrelid = to_regclass('public.' || r.entity_type || 's') and c.conname = 'guard_' || r.rule
            ) then 'in force'
            else 'absent'
        end
    end
    from guard.rules as r
    where r.rule = p_rule
$$;

comment on function guard.constraint_state(text) is
'Whether the table constraint of a rule is absent, invalid, unvalidated or in force; null if it has none.';

grant execute on function guard.constraint_state(text) to guard_operator, guard_monitor;

-- A CHECK that accepts marked rows, on a table with a trigger that marks them, lets through what the mode lets through.
create or replace function guard.constraint_yields(p_rule text)
returns boolean
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(r.constraint_kind = 'check' and strpos(r.constraint_definition, 'guard_corrections') > 0, false)
        and exists (
            select from pg_catalog.pg_trigger as t
            inner join pg_catalog.pg_proc as p on t.tgfoid = p.oid
            where
                t.tgrelid = to_regclass('public.' || r.entity_type || 's')
                and strpos(p.prosrc, quote_literal(r.rule)) > 0
        )
    from guard.rules as r
    where r.rule = p_rule
$$;

comment on function guard.constraint_yields(text) is
'Whether the table constraint of a rule lets through what its mode lets through, and so may stand in every mode.';

grant execute on function guard.constraint_yields(text) to guard_operator, guard_monitor;

-- At enforce and at correct for all; a CHECK that does not yield would refuse what no trigger has repaired: at enforce
-- for all. A row that breaks a unique index or an EXCLUDE constraint cannot be repaired anyhow.
create or replace function guard.constraint_wanted(p_rule text)
returns boolean
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select r.constraint_kind is not null
        and case
            when r.constraint_kind <> 'check' or guard.constraint_yields(r.rule)
                then r.mode = 'enforce' or (r.mode = 'correct' and r.rollout_pct = 100)
            else r.mode = 'enforce' and r.rollout_pct = 100
        end
    from guard.rules as r
    where r.rule = p_rule
$$;

comment on function guard.constraint_wanted(text) is 'Whether the mode of a rule wants its table constraint in force.';

grant execute on function guard.constraint_wanted(text) to guard_operator, guard_monitor;

-- The statements that are still to be run, in order, to bring the constraint in force or to remove it.
create or replace function guard.constraint_statements(p_rule text, p_wanted boolean)
returns table (step integer, statement text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with rule as (
        select
            r.constraint_kind as kind,
            r.constraint_definition as definition,
            guard.constraint_state(r.rule) as state,
            quote_ident('guard_' || r.rule) as name,
            'public.' || quote_ident(r.entity_type || 's') as relation
        from guard.rules as r
        where r.rule = p_rule
    )
    select s.step, s.statement
    from rule as r
    cross join lateral (
        values
        (1, p_wanted and r.kind = 'unique' and r.state = 'invalid',
            format('drop index concurrently public.%s', r.name)),
        (2, p_wanted and r.kind = 'unique' and r.state <> 'in force',
            format('create unique index concurrently %s on %s %s', r.name, r.relation, r.definition)),
        (3, p_wanted and r.kind = 'exclude' and r.state = 'absent',
            format('alter table %s add constraint %s %s', r.relation, r.name, r.definition)),
        (4, p_wanted and r.kind = 'check' and r.state = 'absent',
            format('alter table %s add constraint %s %s not valid', r.relation, r.name, r.definition)),
        (5, p_wanted and r.kind = 'check' and r.state <> 'in force',
            format('alter table %s validate constraint %s', r.relation, r.name)),
        (6, not p_wanted and r.kind = 'unique' and r.state <> 'absent',
            format('drop index concurrently public.%s', r.name)),
        (7, not p_wanted and r.kind in ('check', 'exclude') and r.state <> 'absent',
            format('alter table %s drop constraint %s', r.relation, r.name))
    ) as s (step, needed, statement)
    where s.needed
    order by s.step
$$;

comment on function guard.constraint_statements(text, boolean) is
'What is still to be run, statement by statement, to install or to remove the constraint of a rule.';

grant execute on function guard.constraint_statements(text, boolean) to guard_operator;

create or replace function guard.constraint_object(p_rule text)
returns table (kind text, identity text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select
        case r.constraint_kind when 'unique' then 'index' else 'constraint' end,
        case r.constraint_kind
            when 'unique' then 'public.guard_' || r.rule
            else 'public.' || r.entity_type || 's guard_' || r.rule
        end
    from guard.rules as r
    where r.rule = p_rule and r.constraint_kind is not null
$$;

comment on function guard.constraint_object(text) is
'The table constraint of a rule, as the ledger names it; no row for a rule that has none.';

grant execute on function guard.constraint_object(text) to guard_operator, guard_monitor;

-- Whoever owns the table installs and removes constraints; the ledger is guard's. p_fingerprint: what the catalog holds
-- now, as the ledger digests it; null when the constraint is gone. Locks: ROW EXCLUSIVE on guard.objects.
create or replace function guard.record_constraint(p_rule text, p_fingerprint text)
returns void
language plpgsql
volatile
security definer -- nobody else may write the ledger
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_fingerprint is null then
        delete from guard.objects as o
        where o.kind in ('index', 'constraint') and o.identity ~ ('[. ]guard_' || p_rule || '$');
    else
        insert into guard.objects (kind, identity, path, checksum, fingerprint)
        select c.kind, c.identity, o.path, md5(r.constraint_definition), p_fingerprint
        from guard.rules as r
        cross join lateral guard.constraint_object(r.rule) as c
        inner join guard.objects as o on o.kind = 'rule' and o.identity = r.rule
        where r.rule = p_rule
        on conflict (kind, identity) do update set
            path = excluded.path,
            checksum = excluded.checksum,
            fingerprint = excluded.fingerprint,
            applied_at = clock_timestamp();
    end if;
end
$$;

comment on function guard.record_constraint(text, text) is
'Note in the ledger that the table constraint of a rule was installed, with its fingerprint, or removed.';

grant execute on function guard.record_constraint(text, text) to guard_operator;

-- A unique index or exclusion constraint in force: the trigger need not look for what cannot be. In PL/pgSQL, which
-- keeps the plan for the session: a function in SQL would be planned for every statement that writes.
create or replace function guard.index_in_force(p_rule text)
returns boolean
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from pg_catalog.pg_index as i
        where i.indexrelid = to_regclass('public.guard_' || p_rule) and i.indisvalid
    );
end
$$;

comment on function guard.index_in_force(text) is 'Whether a valid index makes violations of the rule impossible.';

grant execute on function guard.index_in_force(text) to guard_operator;

-- Where the registry cannot be read a rule is not enforced; the fault is counted.
create or replace function guard.is_enforced(p_rule text)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from guard.rules as r where r.rule = p_rule and r.mode = 'enforce');
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        perform guard.note_fault('is_enforced', sqlstate, sqlerrm);
        return false;
end
$$;

comment on function guard.is_enforced(text) is 'Whether a rule stands at enforce.';

-- As long as old rows stand in the way of its index, two sessions at once would not see what the other one writes: at
-- enforce those that may collide take turns. p_keys: hashes of what must be unique, or null. A turn is one of 256, so
-- that a bulk load cannot exhaust the lock table; whoever shares one by chance waits until the other transaction ends.
-- Locks: advisory ones of the transaction, in ascending order, before any row: (hashtext('guard.' || rule), turn).
create or replace function guard.take_turns(p_rule text, p_keys bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_advisory_xact_lock(hashtext('guard.' || p_rule), t.turn)
    from (
        select distinct (k.key & 255)::integer as turn
        from unnest(p_keys) as k (key)
        where k.key is not null
        order by turn
        offset 0
    ) as t;
end
$$;

comment on function guard.take_turns(text, bigint[]) is
'Wait for the transactions that write what may collide with this statement.';
