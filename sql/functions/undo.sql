-- provides: function guard.undo(timestamp with time zone, integer)
--
-- Puts back what guard.repair changed since a moment, from the before-values in the alerts: not what triggers corrected
-- as an application wrote. A value that was changed since, by whomever, is left as it is and counted as skipped.
-- The rules must be lowered first, or the rows would be repaired again as they are written.
-- Locks: the rows of the batch. Raises ZG406 (a rule is in the way), ZG407 (no moment given), ZG405 (no such batch).

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
    v_standing text;
    v_plan jsonb;
    v_entity record;
begin
    if p_since is null or not isfinite(p_since) then
        raise exception using
            errcode = 'ZG407', message = 'undo needs a moment', hint = 'Say since when to undo.';
    end if;
    if p_batch is null or p_batch not between 1 and 10000 then
        raise exception using
            errcode = 'ZG405',
            message = format('a batch of %s rows is not possible', coalesce(p_batch::text, 'null')),
            hint = 'Use 1 to 10000.';
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.reconcile'));
    select min(r.rule) into v_standing
    from guard.rules as r
    where
        r.mode in ('correct', 'enforce')
        and exists (
            select from guard.data_consistency_alerts as a
            where
                a.alert_type = r.rule
                and a.detected_at >= p_since
                and a.metadata @> '{"by": "repair"}'
                and not a.metadata ? 'undone'
        );
    if v_standing is not null then
        raise exception using
            errcode = 'ZG406',
            message = format('%s repairs rows as they are written: what is undone would be repaired again', v_standing),
            hint = format('First: select guard.set_rule(%L, %L)', v_standing, 'observe');
    end if;

    -- for each value: what it was before the first repair, and whether it is what the last repair made of it
    with picked as (
        select distinct a.entity_type, a.entity_id
        from guard.data_consistency_alerts as a
        where
            a.detected_at >= p_since and a.metadata @> '{"by": "repair"}' and not a.metadata ? 'undone'
        limit p_batch
    ),
    noted as (
        update guard.data_consistency_alerts as a
        set metadata = a.metadata || '{"undone": true}', updated_at = now()
        from picked as p
        where
            a.entity_type = p.entity_type
            and a.entity_id = p.entity_id
            and a.detected_at >= p_since
            and a.metadata @> '{"by": "repair"}'
            and not a.metadata ? 'undone'
        returning a.id, a.alert_type, a.entity_type, a.entity_id, a.metadata
    ),
    changed as (
        select
            n.entity_type,
            n.entity_id,
            m."column",
            (array_agg(n.alert_type order by n.id))[1] as rule,
            (array_agg(m.before order by n.id))[1] as before,
            (array_agg(m.after order by n.id desc))[1] as after
        from noted as n
        cross join lateral jsonb_to_recordset(n.metadata -> 'changes') as m ("column" text, before jsonb, after jsonb)
        group by n.entity_type, n.entity_id, m."column"
    )
    select jsonb_agg(jsonb_build_object(
        'entity_type', g.entity_type, 'entity_id', g.entity_id, 'column', g."column", 'rule', g.rule,
        'before', g.before,
        'is_possible', coalesce(
            case g.entity_type
                when 'call' then (
                    select nullif(to_jsonb(c) -> g."column", 'null') is not distinct from nullif(g.after, 'null')
                    from public.calls as c
                    where c.id = g.entity_id
                )
                else (
                    select nullif(to_jsonb(a) -> g."column", 'null') is not distinct from nullif(g.after, 'null')
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
        -- no trigger has calls follow, and none records what is put back on purpose
        perform set_config('guard.writer', pg_trigger_depth()::text, true), set_config('guard.repair', 'undo', true);
        execute format(
            'update public.%1$I as t set %2$s'
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
        ) using v_plan, v_entity.entity_type;
        perform set_config('guard.writer', '', true), set_config('guard.repair', '', true);
    end loop;

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
