-- provides: function guard.register_rule(text, text, text, text, text, text, text, boolean, boolean, interval, interval, text, text, text, text)
-- provides: function guard.slips_through(text)
-- provides: function guard.set_rule(text, text, integer)
--
-- The registry. A rule's file under sql/checks registers it; an operator moves it up and down the ladder.

-- Registers or updates a rule. What an operator may have changed (mode, rollout, grace, window, throttle) is kept.
-- A new rule starts at correct on a table that guard made, at observe on a table that it found. Its view, which the
-- file has just made, gets its comments and its readers. Raises ZG014 if the view lacks a uniform column, ZG016 if
-- p_repair_with is no function of guard's that takes bigint[] and returns integer.
create or replace function guard.register_rule(
    p_rule text,
    p_severity text,
    p_entity_type text,
    p_errcode text,
    p_description text,
    p_repair text,
    p_runbook text,
    p_repairable boolean,
    p_enforceable boolean = true,
    p_grace interval = '0',
    p_detection_window interval = '1 hour',
    p_constraint_kind text = null,
    p_constraint_definition text = null,
    p_probe text = null,
    p_repair_with text = null
)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_columns constant text[] := array[
        'rule', 'text', 'the rule that is broken',
        'severity', 'text', 'info, warning or critical',
        'entity_type', 'text', 'call or appointment',
        'entity_id', 'bigint', 'the id of the call or appointment',
        'company_id', 'bigint', 'the company that it belongs to',
        'occurred_at', 'timestamp with time zone', 'when the row was last written',
        'details', 'jsonb', 'the values that contradict each other; no phone numbers'
    ];
    v_column record;
begin
    if p_repair_with is not null and not exists (
        select from pg_catalog.pg_proc as p
        where p.oid = to_regprocedure(p_repair_with || '(bigint[])') and p.prorettype = 'integer'::regtype
    ) then
        raise exception using
            errcode = 'ZG016',
            message = format('%s repairs with %L, and there is no such function', p_rule, p_repair_with),
            hint = 'Name a function that takes bigint[] and returns integer.';
    end if;
    insert into guard.rules (
        rule, severity, entity_type, mode, errcode, description, repair, runbook, repairable, enforceable, grace,
        detection_window, constraint_kind, constraint_definition, probe, repair_with
    )
    values (
        p_rule, p_severity, p_entity_type,
        case
            when exists (
                select from guard.provenance as p
                where p.kind = 'table' and p.relation = 'public.' || p_entity_type || 's'
            ) then 'correct'
            else 'observe'
        end,
        p_errcode, p_description, p_repair, p_runbook, p_repairable, p_enforceable, p_grace,
        p_detection_window, p_constraint_kind, p_constraint_definition, p_probe, p_repair_with
    )
    on conflict (rule) do update set
        severity = excluded.severity,
        entity_type = excluded.entity_type,
        errcode = excluded.errcode,
        description = excluded.description,
        repair = excluded.repair,
        runbook = excluded.runbook,
        repairable = excluded.repairable,
        enforceable = excluded.enforceable,
        constraint_kind = excluded.constraint_kind,
        constraint_definition = excluded.constraint_definition,
        probe = excluded.probe,
        repair_with = excluded.repair_with,
        updated_at = now();

    execute format('comment on view guard.%I is %L', p_rule, 'Violations now: ' || p_description || '.');
    execute format('grant select on guard.%I to guard_operator, guard_reader, guard_monitor', p_rule);
    for v_column in
        select v_columns[i] as name, v_columns[i + 1] as type, v_columns[i + 2] as meaning
        from generate_series(1, cardinality(v_columns), 3) as i
    loop
        if not exists (
            select from pg_catalog.pg_attribute as a
            where
                a.attrelid = to_regclass(format('guard.%I', p_rule))
                and a.attname = v_column.name
                and format_type(a.atttypid, null) = v_column.type
        ) then
            raise exception using
                errcode = 'ZG014',
                message = format('the view guard.%I has no column %s of type %s', p_rule, v_column.name, v_column.type),
                hint = 'Every rule''s view has the columns of the others: see CONTRIBUTING.md, Add a rule.';
        end if;
        execute format('comment on column guard.%I.%I is %L', p_rule, v_column.name, v_column.meaning);
    end loop;
    for v_column in
        select m.name, m.meaning
        from (
            values
            ('row_id', 'the id as the table has it: what one row is looked up by'),
            ('row_created_at', 'when the row was made, where age bounds the search; infinity where an index finds it at any age')
        ) as m (name, meaning)
        inner join pg_catalog.pg_attribute as a
            on a.attrelid = to_regclass(format('guard.%I', p_rule)) and a.attname = m.name
    loop
        execute format('comment on column guard.%I.%I is %L', p_rule, v_column.name, v_column.meaning);
    end loop;
end
$$;

comment on function guard.register_rule(
    text, text, text, text, text, text, text, boolean, boolean, interval, interval, text, text, text, text
) is 'Register a rule, or bring its registration up to date; keeps what an operator has set.';

-- Sessions that write appointments of one call meet at the call's row, which is written where inconsistent_link_status
-- stands at correct for all calls or at enforce. Below that, two sessions at once do not see each other.
create or replace function guard.slips_through(p_rule text)
returns boolean
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select p_rule = any('{missing_appointment,orphaned_appointment,tenant_mismatch}')
        and not exists (
            select from guard.rules as r
            where
                r.rule = 'inconsistent_link_status'
                and (r.mode = 'enforce' or (r.mode = 'correct' and r.rollout_pct = 100))
        )
$$;

comment on function guard.slips_through(text) is
'Whether two sessions at once may slip through a rule at enforce, since inconsistent_link_status stands too low.';

grant execute on function guard.slips_through(text) to guard_operator, guard_monitor;

-- Locks: the rule's row, and to raise a rule that rests on inconsistent_link_status that one's, against its being
-- lowered at the same time. Writers do not wait for them; they see the new mode with their next statement.
-- Lowering is always possible: it is how an operator stops a rule at once.
-- Raises ZG010 (no such rule), ZG011 (no such mode), ZG012 (percentage), ZG013 (a fact cannot be refused), ZG015 (rests
-- on inconsistent_link_status).
create or replace function guard.set_rule(p_rule text, p_mode text, p_rollout_pct integer = 100)
returns guard.rules
language plpgsql
volatile
security definer -- operators may move a rule only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.rules;
    v_after guard.rules;
    v_slipping text;
begin
    select r.* into v_before from guard.rules as r where r.rule = p_rule for no key update;
    if not found then
        raise exception using
            errcode = 'ZG010',
            message = format('there is no rule %s', coalesce(quote_literal(left(p_rule, 60)), 'without a name')),
            hint = 'select rule from guard.rules lists them';
    end if;
    if p_mode is null or p_mode not in ('off', 'observe', 'correct', 'enforce') then
        raise exception using
            errcode = 'ZG011',
            message = format('%L is not a mode', left(p_mode, 60)),
            hint = 'Use off, observe, correct or enforce.';
    end if;
    if p_rollout_pct is null or p_rollout_pct not between 0 and 100 then
        raise exception using
            errcode = 'ZG012',
            message = format('a rollout of %s percent is not possible', coalesce(p_rollout_pct::text, 'null')),
            hint = 'Use a whole number from 0 to 100.';
    end if;
    if p_mode = 'enforce' and not v_before.enforceable then
        raise exception using
            errcode = 'ZG013',
            message = format('%s reports a fact: refusing the write would only hide it', p_rule),
            hint = 'Use observe.';
    end if;
    if p_mode = 'enforce' and (v_before.mode <> 'enforce' or v_before.rollout_pct < p_rollout_pct) then
        perform from guard.rules as r where r.rule = 'inconsistent_link_status' for share;
        if guard.slips_through(p_rule) then
            raise exception using
                errcode = 'ZG015',
                message = format(
                    '%s cannot be enforced while inconsistent_link_status stands below correct for 100 percent', p_rule
                ),
                detail = 'Two sessions at once would slip through: they meet at the calls that it writes.',
                hint = 'First: select guard.set_rule(''inconsistent_link_status'', ''correct'').';
        end if;
    end if;
    update guard.rules as r
    set mode = p_mode, rollout_pct = p_rollout_pct, updated_at = now()
    where r.rule = p_rule
    returning r.* into v_after;
    insert into guard.audit_log (action, object, before, after)
    values (
        'set_rule', p_rule,
        jsonb_build_object('mode', v_before.mode, 'rollout_pct', v_before.rollout_pct),
        jsonb_build_object('mode', v_after.mode, 'rollout_pct', v_after.rollout_pct)
    );
    select string_agg(r.rule, ', ' order by r.rule) into v_slipping
    from guard.rules as r
    where r.mode = 'enforce' and guard.slips_through(r.rule);
    if v_slipping is not null then
        raise notice using
            message = format('two sessions at once may now slip through %s', v_slipping),
            hint = 'Raise inconsistent_link_status to correct for 100 percent again, or lower these too.';
    end if;
    return v_after;
end
$$;

comment on function guard.set_rule(text, text, integer) is
'Move a rule to a mode for a percentage of calls; takes effect with the next statement and is audited.';

grant execute on function guard.set_rule(text, text, integer) to guard_operator;
