-- provides: function guard.current_violations(text)
-- provides: function guard.sightings(timestamp with time zone, timestamp with time zone)
-- provides: function guard.kpi_definitions(timestamp with time zone, timestamp with time zone)
-- provides: function guard.kpis(timestamp with time zone, timestamp with time zone, bigint)
--
-- The KPIs, each measured by a query that it carries with it. All of this only reads, also on a hot standby.
-- Raises ZG701 (no period), ZG703 (no such company).

-- What breaks a rule now, but for what a person found to be false. A rule whose view fails gives one row that says so,
-- with the SQLSTATE and no text, which could quote a row; the other rules are asked all the same.
create or replace function guard.current_violations(p_entity_type text = null)
returns table (rule text, severity text, entity_type text, entity_id bigint, company_id bigint, error text)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule record;
begin
    for v_rule in
        select r.rule, r.severity, r.entity_type
        from guard.rules as r
        where p_entity_type is null or r.entity_type = p_entity_type
        order by r.rule
    loop
        begin
            return query execute format(
                'select v.rule, v.severity, v.entity_type, v.entity_id, v.company_id, null::text'
                ' from guard.%I as v'
                ' where not exists ('
                '     select from guard.incidents as i'
                '     where i.rule = v.rule and i.entity_type = v.entity_type and i.entity_id = v.entity_id and i.is_false'
                ' )',
                v_rule.rule
            );
        exception
            when serialization_failure or deadlock_detected then
                raise;
            when others then
                return query
                    select
                        v_rule.rule, v_rule.severity, v_rule.entity_type, null::bigint, null::bigint,
                        format('its view failed with SQLSTATE %s', sqlstate);
        end;
    end loop;
end
$$;

comment on function guard.current_violations(text) is
'What breaks a rule now, for calls, appointments or both; a rule whose view fails gives a row with its error.';

-- The one place that says what counts as found: alerts, incidents, and what was queued for a person because it could not
-- be repaired. Left out are calls that only followed a row that was repaired, and what a person found to be false,
-- unless guard had corrected it before. A defect may be sighted several times: who counts takes each row once.
create or replace function guard.sightings(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (
    rule text, entity_type text, entity_id bigint, company_id bigint, seen_at timestamp with time zone,
    corrected boolean
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select s.rule, s.entity_type, s.entity_id, s.company_id, s.seen_at, s.corrected
    from (
        select
            a.alert_type as rule, a.entity_type, a.entity_id, a.company_id, a.detected_at as seen_at,
            a.auto_corrected or a.corrected_at is not null as corrected
        from guard.data_consistency_alerts as a
        where a.detected_at >= p_from and a.detected_at < p_to and not a.metadata ? 'follows'
        union all
        select i.rule, i.entity_type, i.entity_id, i.company_id, i.first_seen_at, false
        from guard.incidents as i
        where i.first_seen_at >= p_from and i.first_seen_at < p_to
        union all
        select q.reason, 'call', q.call_id, c.company_id, q.created_at, false
        from guard.manual_review_queue as q
        inner join guard.rules as r on q.reason = r.rule and r.entity_type = 'call'
        left join public.calls as c on q.call_id = c.id
        where q.created_at >= p_from and q.created_at < p_to
        union all
        select q.reason, 'appointment', k.appointment_id, a.company_id, q.created_at, false
        from guard.manual_review_queue as q
        inner join guard.rules as r on q.reason = r.rule and r.entity_type = 'appointment'
        cross join lateral (select substring(q.subject from '^appointment (\d{1,18})$')::bigint as appointment_id) as k
        left join public.appointments as a on k.appointment_id = a.id
        where q.created_at >= p_from and q.created_at < p_to
    ) as s
    where
        s.entity_id is not null
        and (
            s.corrected
            or not exists (
                select from guard.incidents as i
                where i.rule = s.rule and i.entity_type = s.entity_type and i.entity_id = s.entity_id and i.is_false
            )
        )
$$;

comment on function guard.sightings(timestamp with time zone, timestamp with time zone) is
'What was found in a period, by which rule, and whether guard corrected it; a defect may have several rows.';

-- The one place that says what is measured, on which rows, against which target. rows_query gives one row for each
-- thing that was measured: its company and its amount; measure is the aggregate over them.
-- consistency_rate: a call created in the period counts 100 unless it breaks a critical or warning rule now; not known
--     while a rule's view fails.
-- alert_response: from a critical incident to the first reaction of a person, or to its end; one that still waits counts
--     with the time that it has waited. What the baseline took over was no news: it is left out here, and below.
-- auto_correction_rate: a defect that a repairable rule found counts 100 if guard corrected it within the period, and 0
--     if it was only queued for a person.
create or replace function guard.kpi_definitions(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (kpi text, target numeric, unit text, comparison text, measure text, rows_query text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
    select d.kpi, d.target, d.unit, d.comparison, d.measure, format(d.rows_query, p_from, p_to, s.value)
    from guard.settings as s
    cross join (
        values
        (
            1, 'consistency_rate', 99.5, '%', '>=', 'avg(r.amount)',
            $q$with v as materialized (
    select v.entity_id, v.error from guard.current_violations('call') as v where v.severity <> 'info'
)
select c.company_id::bigint as company_id,
    case
        when exists (select from v where v.error is not null) then null
        when w.entity_id is null then 100.0
        else 0.0
    end as amount
from public.calls as c
left join (select distinct v.entity_id from v) as w on c.id = w.entity_id
where c.created_at >= guard.bound(%1$L, %3$L, c.created_at) and c.created_at < guard.bound(%2$L, %3$L, c.created_at)$q$
        ),
        (
            2, 'validation_p95', 100, 'ms', '<=', 'percentile_cont(0.95) within group (order by r.amount)',
            $q$select c.company_id::bigint as company_id, m.duration_ms as amount
from guard.validation_metrics as m
left join public.calls as c on m.call_id = c.id
where m.created_at >= %1$L and m.created_at < %2$L$q$
        ),
        (
            3, 'breaker_recovery', 60, 's', '<=', 'avg(r.amount)',
            $q$select null::bigint as company_id, o.duration_seconds as amount
from guard_bi.breaker_outages as o
where o.closed_at >= %1$L and o.closed_at < %2$L$q$
        ),
        (
            4, 'alert_response', 5, 'min', '<=', 'avg(r.amount)',
            $q$select i.company_id,
    extract(epoch from coalesce(
        least(
            case when i.acknowledged_at >= i.first_seen_at then i.acknowledged_at end,
            case when i.resolved_at >= i.first_seen_at then i.resolved_at end
        ),
        now()
    ) - i.first_seen_at) / 60 as amount
from guard.incidents as i
where i.severity = 'critical' and i.first_seen_at >= %1$L and i.first_seen_at < %2$L
    and i.resolved_by is distinct from 'baseline'$q$
        ),
        (
            5, 'auto_correction_rate', 90, '%', '>=', 'avg(r.amount)',
            $q$select min(s.company_id) as company_id, case when bool_or(s.corrected) then 100.0 else 0.0 end as amount
from guard.sightings(%1$L, %2$L) as s
inner join guard.rules as u on s.rule = u.rule and u.repairable
group by s.rule, s.entity_type, s.entity_id$q$
        ),
        (
            6, 'queue_size', 10, 'items', '<=', 'count(*)',
            $q$select c.company_id::bigint as company_id, 1 as amount
from guard.manual_review_queue as q
left join public.calls as c on q.call_id = c.id
where q.created_at < %2$L and (q.resolved_at is null or q.resolved_at >= %2$L)$q$
        ),
        (
            7, 'false_positive_rate', 1, '%', '<=', 'avg(r.amount)',
            $q$select i.company_id, case when i.is_false then 100.0 else 0.0 end as amount
from guard.incidents as i
where i.entity_id is not null and i.first_seen_at >= %1$L and i.first_seen_at < %2$L
    and i.resolved_by is distinct from 'baseline'$q$
        )
    ) as d (position, kpi, target, unit, comparison, measure, rows_query)
    where s.name = 'app_timezone'
    order by d.position
$$;

comment on function guard.kpi_definitions(timestamp with time zone, timestamp with time zone) is
'What each KPI measures: its target, the aggregate, and a query for the rows behind it.';

-- value and met are null where there was nothing to measure; only the size of the queue is 0 then. Circuits belong to
-- no company: for one company breaker_recovery is left out.
create or replace function guard.kpis(
    p_from timestamp with time zone, p_to timestamp with time zone, p_company_id bigint = null
)
returns table (
    kpi text, target numeric, value numeric, unit text, met boolean, comparison text, rows_behind bigint, source text
)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_kpi record;
begin
    if p_from is null or p_to is null or p_from >= p_to or not isfinite(p_from) or not isfinite(p_to) then
        raise exception using
            errcode = 'ZG701',
            message = 'this is not a period of time',
            hint = 'Give a beginning and a later end.';
    end if;
    if p_company_id is not null and not exists (select from public.companies as c where c.id = p_company_id) then
        raise exception using
            errcode = 'ZG703',
            message = format('there is no company %s', p_company_id),
            hint = 'Give the id of a row of public.companies.';
    end if;
    for v_kpi in
        select d.*
        from guard.kpi_definitions(p_from, p_to) as d
        where p_company_id is null or d.kpi <> 'breaker_recovery'
    loop
        kpi := v_kpi.kpi;
        target := v_kpi.target;
        unit := v_kpi.unit;
        comparison := v_kpi.comparison;
        source := format(
            E'select trim_scale(round((%s)::numeric, 6)) as value, count(*) as rows_behind\nfrom (\n%s\n) as r%s',
            v_kpi.measure, v_kpi.rows_query, E'\nwhere r.company_id = ' || p_company_id
        );
        execute source into value, rows_behind;
        met := case comparison when '>=' then value >= target else value <= target end;
        return next;
    end loop;
end
$$;

comment on function guard.kpis(timestamp with time zone, timestamp with time zone, bigint) is
'The KPIs of a period, of all companies or of one: target, measured value, verdict, and the query that measured it.';

grant execute on function guard.current_violations(text) to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.sightings(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.kpi_definitions(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.kpis(timestamp with time zone, timestamp with time zone, bigint)
to guard_operator, guard_reader, guard_monitor;
