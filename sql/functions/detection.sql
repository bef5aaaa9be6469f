-- provides: function guard.find_violations(text, timestamp with time zone, bigint[], bigint, bigint)
-- provides: function guard.detect_rule(text, timestamp with time zone, bigint[])
-- provides: function guard.detect(interval)
-- provides: function guard.detect_entities(bigint[], bigint[])
-- provides: function guard.check_call(bigint)
-- provides: function guard.judge_pending(integer)
--
-- Finding what slipped through. A rule's view is the one definition; everything here asks it, over a window of time or
-- for given rows, and turns what it answers into incidents. What the baseline holds is known and not news.
-- A rule whose view fails is itself a critical incident, and stops no other. Incidents of a rule that is off are over.
-- Raises ZG404 (a window that is none).

-- The violations of one rule, dynamic because the rule names its view. Each bound may be null. Rows that were written
-- since p_since, and where a view has row_created_at, rows that were made since: see sql/checks. With p_after the next
-- p_limit in the order of ids. Few rows are looked at through indexes: compiling the query, and starting workers for it,
-- would take ten times as long.
create or replace function guard.find_violations(
    p_rule text,
    p_since timestamp with time zone = null,
    p_ids bigint[] = null,
    p_after bigint = null,
    p_limit bigint = null
)
returns table (entity_id bigint, company_id bigint, occurred_at timestamp with time zone, details jsonb)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set max_parallel_workers_per_gather = 0
as $$
declare
    v_columns constant name[] := array(
        select a.attname from pg_catalog.pg_attribute as a where a.attrelid = to_regclass(format('guard.%I', p_rule))
    );
    v_id constant name := case when 'row_id' = any(v_columns) then 'row_id' else 'entity_id' end;
begin
    perform set_config('timezone', guard.setting('app_timezone'), true);
    return query execute concat_ws(
        ' ',
        format('select v.entity_id, v.company_id, v.occurred_at, v.details from guard.%I as v where true', p_rule),
        case when p_ids is not null then format('and v.%I = any($2)', v_id) end,
        case when p_since is not null then 'and v.occurred_at >= $1' end,
        case when p_since is not null and 'row_created_at' = any(v_columns) then 'and v.row_created_at >= $1' end,
        case when p_after is not null then format('and v.%1$I > $3 order by v.%1$I limit $4', v_id) end
    ) using p_since, p_ids, p_after, p_limit;
end
$$;

comment on function guard.find_violations(text, timestamp with time zone, bigint[], bigint, bigint) is
'What a rule''s view shows, since a moment or of given rows.';

-- One rule, over a window or over given rows: opens and refreshes incidents, and resolves those that are gone; over
-- given rows only those of these rows. violations counts what is not of the baseline; null if the view failed.
-- While more stands than is kept, and places get free, everything is looked at whatever the window: the next ones are
-- found at any age. Not for each place, but for a tenth of them. Only a look at everything can tell that no more stands.
create or replace function guard.detect_rule(
    p_rule text, p_since timestamp with time zone, p_ids bigint[], out violations bigint, out new_incidents bigint
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    c_cap constant integer := guard.setting('incident_sample_cap')::integer;
    c_overflow constant text := format('rule_overflow:rule:%s', p_rule);
    -- how many there were, when they were counted last
    v_known constant bigint := (
        select (i.details ->> 'found')::bigint
        from guard.incidents as i
        where i.fingerprint = c_overflow and i.status <> 'resolved'
    );
    v_since constant timestamptz := case
        when
            v_known is null
            or (select count(*) from guard.incidents as i where i.rule = p_rule and i.status <> 'resolved') > 0.9 * c_cap
            then p_since
    end;
    v_is_everything constant boolean := v_since is null and p_ids is null;
    v_rule guard.rules;
    v_count bigint;
    v_found jsonb;
    v_gone bigint[];
    v_error text;
begin
    -- before any incident is locked or looked at: whoever waited here judges what is there now
    perform pg_advisory_xact_lock(hashtext('guard.open_incidents'));
    select r.* into v_rule from guard.rules as r where r.rule = p_rule;
    begin
        with found as (
            -- a view that joins may show a row more than once
            select distinct on (f.entity_id) f.*
            from guard.find_violations(p_rule, v_since, p_ids) as f
            where
                f.entity_id is not null
                and not exists (
                    select from guard.baseline as b
                    where b.rule = p_rule and b.entity_id = f.entity_id and b.cleared_at is null
                )
            order by f.entity_id, f.occurred_at desc nulls last
        ),
        standing as (
            select i.entity_id
            from guard.incidents as i
            where
                i.rule = p_rule
                and i.entity_type = v_rule.entity_type
                and i.status <> 'resolved'
                and (p_ids is null or i.entity_id = any(p_ids))
        ),
        missed as (
            select s.entity_id from standing as s
            except
            select f.entity_id from found as f
        ),
        -- what stands open and was not found is gone, or is older than the window: asked for by its id
        older as (
            select distinct on (o.entity_id) o.*
            from guard.find_violations(p_rule, p_ids => array(select m.entity_id from missed as m)) as o
            where v_since is not null and exists (select from missed as m)
            order by o.entity_id, o.occurred_at desc nulls last
        ),
        seen as (
            select f.*, row_number() over (order by f.occurred_at desc nulls last) as place from found as f
            union all
            select o.*, null as place from older as o
        )
        -- the newest of them, when there are more than are kept, and what stands open
        select
            count(v.place),
            jsonb_agg(
                jsonb_build_object(
                    'rule', p_rule, 'severity', v_rule.severity, 'entity_type', v_rule.entity_type,
                    'entity_id', v.entity_id, 'company_id', v.company_id, 'occurred_at', v.occurred_at,
                    'description', v_rule.description, 'details', v.details
                )
            ) filter (where v.place <= c_cap or s.entity_id is not null),
            array(
                select m.entity_id from missed as m
                except
                select o.entity_id from older as o
            )
        into violations, v_found, v_gone
        from seen as v
        left join standing as s on v.entity_id = s.entity_id;
    exception
        when serialization_failure or deadlock_detected then
            raise;
        when others then
            v_error := format('%s: %s', sqlstate, guard.mask_phones(sqlerrm));
    end;
    if v_error is not null then
        new_incidents := guard.open_incidents(jsonb_build_array(jsonb_build_object(
            'rule', 'rule_failed', 'severity', 'critical', 'entity_type', 'rule', 'subject', p_rule,
            'description', format('the view of %s fails, so that nothing is found by it', p_rule),
            'details', jsonb_build_object('subject', p_rule, 'error', v_error)
        )));
        return;
    end if;
    perform guard.resolve_incidents(
        array_append(
            array(select concat_ws(':', p_rule, v_rule.entity_type, g.id) from unnest(v_gone) as g (id)),
            'rule_failed:rule:' || p_rule
        )
    );
    new_incidents := guard.open_incidents(v_found);
    v_count := case when v_is_everything then violations else greatest(violations, v_known) end;
    if v_count > c_cap then
        perform guard.open_incidents(jsonb_build_array(jsonb_build_object(
            'rule', 'rule_overflow', 'severity', v_rule.severity, 'entity_type', 'rule', 'subject', p_rule,
            'description', format('%s rows break %s, and no more than %s are kept as incidents', v_count, p_rule, c_cap),
            'details', jsonb_build_object('subject', p_rule, 'found', v_count, 'kept', c_cap)
        )));
    elsif v_is_everything then
        perform guard.resolve_incidents(array[c_overflow]);
    end if;
end
$$;

comment on function guard.detect_rule(text, timestamp with time zone, bigint[]) is
'Ask one rule''s view, over a window or for given rows, and bring its incidents up to date.';

-- Several at once wait for each other; on a standby nothing is found. Cost: what is wrong and what is new, not what
-- there is; a window of years looks at everything.
create or replace function guard.detect(p_window interval = '1 hour')
returns table (rule text, severity text, found bigint, new_incidents bigint)
language plpgsql
volatile
security definer -- a job's login need not read calls
set search_path = pg_catalog, pg_temp
as $$
declare
    v_since timestamptz;
begin
    if p_window is null or p_window < interval '0' then
        raise exception using
            errcode = 'ZG404',
            message = format('a window of %s is none', coalesce(p_window::text, 'null')),
            hint = 'Give how far to look back, such as 1 hour.';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.open_incidents'));
    -- everything: rows too that do not say when they were written
    v_since := case when p_window < interval '1000 years' then now() - p_window end;
    if v_since is null then
        perform guard.refresh_baseline(); -- what comes back later is news
    end if;
    return query
    select r.rule, r.severity, d.violations, d.new_incidents
    from (select e.* from guard.rules as e where e.mode <> 'off' order by e.rule) as r
    cross join lateral guard.detect_rule(r.rule, v_since, null) as d;
    -- of a rule that is off, or is no more, nobody can say whether it still stands
    perform guard.resolve_incidents(
        array(
            select i.fingerprint
            from guard.incidents as i
            left join guard.rules as a
                on
                    a.rule = case i.entity_type when 'rule' then i.details ->> 'subject' else i.rule end
                    and a.mode <> 'off'
            where i.status <> 'resolved' and i.entity_type <> 'job' and a.rule is null
        ),
        'rule off'
    );
end
$$;

comment on function guard.detect(interval) is
'Every rule against what was written within the window: found is null where the rule''s view fails.';

-- Every rule against these rows, each rule against those of its kind.
create or replace function guard.detect_entities(p_calls bigint[], p_appointments bigint[])
returns bigint
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(sum(d.violations), 0)::bigint
    from (
        select r.rule, case r.entity_type when 'call' then p_calls else p_appointments end as ids
        from guard.rules as r
        where r.mode <> 'off'
        order by r.rule
    ) as asked
    cross join lateral guard.detect_rule(asked.rule, null, asked.ids) as d
    where asked.ids <> '{}'
$$;

comment on function guard.detect_entities(bigint[], bigint[]) is
'Every rule against given calls and appointments; returns how many violations are not of the baseline.';

-- Shows what the baseline holds too: the caller asks about this call.
create or replace function guard.check_call(p_call_id bigint)
returns table (rule text, severity text, details jsonb)
language plpgsql
volatile
security definer -- an application checks a call of its own, and may not write incidents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_appointments constant bigint[] := array(select a.id from public.appointments as a where a.call_id = p_call_id);
begin
    if not exists (select from public.calls as c where c.id = p_call_id) then
        raise exception using
            errcode = 'ZG301',
            message = format('there is no call %s', coalesce(p_call_id::text, 'null')),
            hint = 'Give the id of a row of calls.';
    end if;
    perform guard.detect_entities(array[p_call_id], v_appointments);
    return query
    select r.rule, r.severity, v.details
    from guard.rules as r
    cross join lateral guard.find_violations(
        r.rule, p_ids => case r.entity_type when 'call' then array[p_call_id] else v_appointments end
    ) as v
    where
        r.mode <> 'off'
        and not exists (
            select from guard.incidents as i
            where i.fingerprint = 'rule_failed:rule:' || r.rule and i.status <> 'resolved'
        )
    order by r.rule, v.entity_id;
end
$$;

comment on function guard.check_call(bigint) is
'Every rule against one call and its appointments, and their incidents brought up to date.';

-- What was noted as suspicious and whose grace has passed: judged, and repaired where the rule stands at correct or
-- enforce. Several sessions share the work: each takes what no other has locked. A crash loses nothing: what was taken
-- comes back with the rollback.
-- Locks: those of pending_checks, where no writer waits for them; then that of open_incidents, before any call or
-- appointment.
create or replace function guard.judge_pending(p_limit integer = 1000)
returns table (judged integer, found integer)
language plpgsql
volatile
security definer -- a job's login need not read calls
set search_path = pg_catalog, pg_temp
as $$
declare
    v_calls bigint[];
    v_appointments bigint[];
    v_judged integer := 0;
    v_found integer := 0;
begin
    if pg_is_in_recovery() then
        return query select 0, 0;
        return;
    end if;
    with taken as (
        delete from guard.pending_checks as p
        where
            p.ctid = any(array(
                select d.ctid
                from guard.pending_checks as d
                where
                    d.due_at <= now()
                    -- no grace is longer: the clock was set back since
                    or d.due_at > now() + (select max(r.grace) + interval '1 minute' from guard.rules as r)
                order by d.due_at
                limit greatest(p_limit, 0)
                for update skip locked
            ))
        returning p.call_id, p.appointment_id
    )
    select
        array_agg(distinct t.call_id) filter (where t.call_id is not null),
        array_agg(distinct t.appointment_id) filter (where t.appointment_id is not null),
        count(*)
    into v_calls, v_appointments, v_judged
    from taken as t;
    if v_judged > 0 then
        v_appointments := array(
            select a.id from public.appointments as a where a.call_id = any(v_calls)
            union
            select unnest(v_appointments)
        );
        v_calls := coalesce(v_calls, '{}');
        v_found := guard.detect_entities(v_calls, v_appointments);
        if v_found > 0 then
            perform guard.repair(r.rule, case r.entity_type when 'call' then v_calls else v_appointments end)
            from guard.rules as r
            where r.mode in ('correct', 'enforce') and r.severity <> 'info';
        end if;
    end if;
    return query select v_judged, v_found;
end
$$;

comment on function guard.judge_pending(integer) is
'Judge the calls and appointments whose grace has passed; returns how many there were and how many violations stood.';

grant execute on function guard.detect(interval) to guard_operator;
grant execute on function guard.check_call(bigint) to guard_app, guard_operator;
grant execute on function guard.judge_pending(integer) to guard_operator;
