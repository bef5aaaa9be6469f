-- provides: function guard.undo(timestamp with time zone, integer)
--
-- Puts back what guard.repair changed since a moment, from the before-values in the alerts: not what triggers corrected
-- as an application wrote. A value that was changed since, by whomever, is left as it is and counted as skipped.
-- The rules must be lowered first, or the rows would be repaired again as they are written.
-- Locks: the rows of the batch, calls first; it waits for who holds them.
-- Raises ZG406 (a rule is in the way), ZG407 (no moment that has passed), ZG405 (no such batch).

-- p_batch rows a call, and the caller loops until it gets none. restored and skipped count values. An alert whose
-- changes were gone through says so: metadata.undone.
create or replace function guard.undo(p_since timestamp with time zone, p_batch integer = 1000)
returns table (rule text, restored bigint, skipped bigint)
language plpgsql
volatile
security definer -- operators undo without having the rights on the application's tables
set search_path = pg_catalog, pg_temp
as $$
declare
    v_standing text[];
    v_calls bigint[];
    v_appointments bigint[];
    v_plan jsonb;
    v_entity record;
begin
    if p_since is null or not isfinite(p_since) or p_since > clock_timestamp() then
        raise exception using
            errcode = 'ZG407', message = 'undo needs a moment that has passed', hint = 'Say since when to undo.';
    end if;
    if p_batch is null or p_batch not between 1 and 10000 then
        raise exception using
            errcode = 'ZG405',
            message = format('a batch of %s rows is not possible', coalesce(p_batch::text, 'null')),
            hint = 'Use 1 to 10000.';
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.reconcile'));
    select array_agg(r.rule order by r.rule) into v_standing
    from guard.rules as r
    where
        r.mode in ('correct', 'enforce')
        and exists (
            select from guard.data_consistency_alerts as a
            where
                -- calls would follow an appointment that is put back
                (a.alert_type = r.rule or (r.rule = 'inconsistent_link_status' and a.entity_type = 'appointment'))
                and a.detected_at >= p_since
                and a.metadata @> '{"by": "repair"}'
                and not a.metadata ? 'undone'
        );
    if v_standing is not null then
        raise exception using
            errcode = 'ZG406',
            message = format(
                '%s %s rows as they are written: what is undone would be repaired again',
                array_to_string(v_standing, ', '), case cardinality(v_standing) when 1 then 'repairs' else 'repair' end
            ),
            hint = (
                select 'First: ' || string_agg(format('select guard.set_rule(%L, %L)', s.rule, 'observe'), '; ')
                from unnest(v_standing) as s (rule)
            );
    end if;

    select
        array_agg(p.entity_id) filter (where p.entity_type = 'call'),
        array_agg(p.entity_id) filter (where p.entity_type = 'appointment')
    into v_calls, v_appointments
    from (
        select distinct a.entity_type, a.entity_id
        from guard.data_consistency_alerts as a
        where
            a.detected_at >= p_since and a.metadata @> '{"by": "repair"}' and not a.metadata ? 'undone'
        limit p_batch
    ) as p;
    -- a statement of its own for the judgement: it sees what those committed who held the rows before
    perform from public.calls as c where c.id = any(v_calls) order by c.id for no key update;
    perform from public.appointments as a where a.id = any(v_appointments) order by a.id for no key update;

    -- For each value: what it was before the first repair, and whether it is what the last repair made of it. Where
    -- somebody else wrote it between two repairs, what he wrote is what it was. Values are compared as their columns
    -- have them: an alert holds a moment as the session's time zone printed it. Generated columns follow by themselves.
    with noted as (
        update guard.data_consistency_alerts as a
        set metadata = a.metadata || '{"undone": true}', updated_at = now()
        where
            (
                (a.entity_type = 'call' and a.entity_id = any(v_calls))
                or (a.entity_type = 'appointment' and a.entity_id = any(v_appointments))
            )
            and a.detected_at >= p_since
            and a.metadata @> '{"by": "repair"}'
            and not a.metadata ? 'undone'
        returning a.id, a.alert_type, a.entity_type, a.entity_id, a.metadata
    ),
    steps as (
        select
            n.id,
            n.alert_type,
            n.entity_type,
            n.entity_id,
            m."column",
            v.before,
            v.after,
            row_number() over step > 1 and lag(v.after) over step is distinct from v.before as is_anew
        from noted as n
        cross join lateral jsonb_to_recordset(n.metadata -> 'changes') as m ("column" text, before jsonb, after jsonb)
        inner join pg_catalog.pg_attribute as col
            on
                col.attrelid = to_regclass(format('public.%I', n.entity_type || 's'))
                and col.attname = m."column"
                and col.attgenerated = ''
        cross join lateral (
            select
                nullif(as_column.row_before -> m."column", 'null') as before,
                nullif(as_column.row_after -> m."column", 'null') as after
            from (
                select
                    to_jsonb(jsonb_populate_record(null::public.calls, jsonb_build_object(m."column", m.before)))
                    as row_before,
                    to_jsonb(jsonb_populate_record(null::public.calls, jsonb_build_object(m."column", m.after)))
                    as row_after
                where n.entity_type = 'call'
                union all
                select
                    to_jsonb(jsonb_populate_record(null::public.appointments, jsonb_build_object(m."column", m.before))),
                    to_jsonb(jsonb_populate_record(null::public.appointments, jsonb_build_object(m."column", m.after)))
                where n.entity_type = 'appointment'
            ) as as_column
        ) as v
        window step as (partition by n.entity_type, n.entity_id, m."column" order by n.id)
    ),
    chained as (
        select
            s.*,
            count(*) filter (where s.is_anew) over (
                partition by s.entity_type, s.entity_id, s."column" order by s.id desc
                rows between unbounded preceding and 1 preceding
            ) as begun_later
        from steps as s
    ),
    changed as (
        select
            c.entity_type,
            c.entity_id,
            c."column",
            (array_agg(c.alert_type order by c.id))[1] as rule,
            (array_agg(c.before order by c.id))[1] as before,
            (array_agg(c.after order by c.id desc))[1] as after
        from chained as c
        where c.begun_later = 0
        group by c.entity_type, c.entity_id, c."column"
    )
    select jsonb_agg(jsonb_build_object(
        'entity_type', g.entity_type, 'entity_id', g.entity_id, 'column', g."column", 'rule', g.rule,
        'before', g.before,
        'is_possible', coalesce(
            case g.entity_type
                when 'call' then (
                    select nullif(to_jsonb(c) -> g."column", 'null') is not distinct from g.after
                    from public.calls as c
                    where c.id = g.entity_id
                )
                else (
                    select nullif(to_jsonb(a) -> g."column", 'null') is not distinct from g.after
                    from public.appointments as a
                    where a.id = g.entity_id
                )
            end, false
        )
    ))
    into v_plan
    from changed as g;

    -- appointments first: where calls follow them, the calls' own values come after
    for v_entity in
        select
            p.entity_type,
            string_agg(
                distinct format(
                    '%1$I = case when u.vals ? %1$L then r.%1$I else t.%1$I end', p."column"
                ), ', '
            ) as assignments
        from jsonb_to_recordset(v_plan) as p (entity_type text, "column" text, is_possible boolean)
        where p.is_possible
        group by p.entity_type
        order by p.entity_type
    loop
        -- no trigger has calls follow, and none records what is put back on purpose; a CHECK of guard's lets it through
        perform set_config('guard.writer', pg_trigger_depth()::text, true), set_config('guard.repair', 'undo', true);
        execute format(
            'update public.%1$I as t set %2$s, guard_corrections = $3'
            ' from ('
            '    select p.entity_id, jsonb_object_agg(p."column", p.before) as vals'
            '    from jsonb_to_recordset($1) as p'
            '        (entity_type text, entity_id bigint, "column" text, before jsonb, is_possible boolean)'
            '    where p.is_possible and p.entity_type = $2'
            '    group by p.entity_id'
            ' ) as u'
            ' cross join lateral jsonb_populate_record(null::public.%1$I, u.vals) as r'
            ' where t.id = u.entity_id',
            v_entity.entity_type || 's', v_entity.assignments
        ) using v_plan, v_entity.entity_type, (
            select jsonb_agg(jsonb_build_object('rule', r.rule, 'mode', 'pass'))
            from guard.rules as r
            where r.entity_type = v_entity.entity_type and r.constraint_kind = 'check'
        );
        perform set_config('guard.writer', '', true), set_config('guard.repair', '', true);
    end loop;

    -- what the baseline knew, and a repair cleared, is known again
    update guard.baseline as b
    set cleared_at = null
    from (
        select distinct p.entity_type, p.entity_id
        from jsonb_to_recordset(v_plan) as p (entity_type text, entity_id bigint, is_possible boolean)
        where p.is_possible
    ) as u
    where b.entity_type = u.entity_type and b.entity_id = u.entity_id and b.cleared_at >= p_since;

    return query
    select p.rule, count(*) filter (where p.is_possible), count(*) filter (where not p.is_possible)
    from jsonb_to_recordset(v_plan) as p (rule text, is_possible boolean)
    group by p.rule
    order by p.rule;
    insert into guard.audit_log (action, object, after)
    select 'undo', 'repairs since ' || p_since, jsonb_build_object('values', jsonb_array_length(v_plan))
    where v_plan is not null;
end
$$;

comment on function guard.undo(timestamp with time zone, integer) is
'Put back what repairs changed since a moment, a batch a call; what was changed since is skipped.';

grant execute on function guard.undo(timestamp with time zone, integer) to guard_operator;
