-- provides: function guard.report_rules(timestamp with time zone, timestamp with time zone)
-- provides: function guard.report_days(date, integer)
-- provides: function guard.report_companies(timestamp with time zone, timestamp with time zone)
-- provides: function guard.report_detection(timestamp with time zone, timestamp with time zone)
-- provides: function guard.report_validations(timestamp with time zone, timestamp with time zone)
-- provides: function guard.report_breakers(timestamp with time zone, timestamp with time zone)
-- provides: function guard.report_queue(timestamp with time zone)
--
-- The parts of the daily report: each number of a report is in the result of one of these, or is a sum of such. They
-- only read. A defect is a rule and the row that breaks it; it counts once, however often it was seen.

-- found: defects that were sighted in the period, see guard.sightings; corrected: of these, those that guard corrected;
-- recovered: of these, those that break the rule no longer; standing: what breaks the rule now, of what was found and of
-- the rows that were created in the period. Includes the rules of severity info, and those that are off.
create or replace function guard.report_rules(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (
    rule text, severity text, mode text, found bigint, corrected bigint, recovered bigint, standing bigint,
    examples bigint[], error text
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with zone as (
        select s.value from guard.settings as s where s.name = 'app_timezone'
    ),

    now_broken as materialized (
        select v.rule, v.entity_type, v.entity_id, v.error from guard.current_violations() as v
    ),

    defects as materialized (
        select s.rule, s.entity_type, s.entity_id, bool_or(s.corrected) as corrected
        from guard.sightings(p_from, p_to) as s
        group by s.rule, s.entity_type, s.entity_id
    ),

    written as (
        select 'call' as entity_type, c.id::bigint as entity_id
        from zone as z
        inner join public.calls as c
            on c.created_at >= guard.bound(p_from, z.value, c.created_at)
            and c.created_at < guard.bound(p_to, z.value, c.created_at)
        union all
        select 'appointment' as entity_type, a.id::bigint as entity_id
        from zone as z
        inner join public.appointments as a
            on a.created_at >= guard.bound(p_from, z.value, a.created_at)
            and a.created_at < guard.bound(p_to, z.value, a.created_at)
    ),

    judged as (
        select d.rule, d.entity_id, true as found, d.corrected, b.entity_id is not null as stands
        from defects as d
        left join now_broken as b
            on d.rule = b.rule and d.entity_type = b.entity_type and d.entity_id = b.entity_id
        union all
        select b.rule, b.entity_id, false as found, false as corrected, true as stands
        from now_broken as b
        inner join written as w on b.entity_type = w.entity_type and b.entity_id = w.entity_id
        left join defects as d
            on b.rule = d.rule and b.entity_type = d.entity_type and b.entity_id = d.entity_id
        where d.entity_id is null
    )

    select
        r.rule,
        r.severity,
        r.mode,
        count(j.entity_id) filter (where j.found) as found,
        count(j.entity_id) filter (where j.corrected) as corrected,
        count(j.entity_id) filter (where j.found and not j.stands) as recovered,
        count(j.entity_id) filter (where j.stands) as standing,
        (array_agg(j.entity_id order by j.stands desc, j.entity_id) filter (where j.entity_id is not null))[1:3]
        as examples,
        (select b.error from now_broken as b where b.rule = r.rule and b.error is not null) as error
    from guard.rules as r
    left join judged as j on r.rule = j.rule
    group by r.rule
    order by found desc, standing desc, array_position(array['critical', 'warning', 'info'], r.severity), r.rule
$$;

comment on function guard.report_rules(timestamp with time zone, timestamp with time zone) is
'What each rule found in a period, what became of it, and what stands now.';

-- Days without rows are there, with zeros. Counts critical and warning rules; a defect counts on each day on which it
-- was found.
create or replace function guard.report_days(p_until date, p_days integer)
returns table (day date, calls bigint, appointments bigint, found bigint, corrected bigint)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with period as (
        select
            s.value as zone,
            (p_until - p_days + 1)::timestamp at time zone s.value as starts,
            (p_until + 1)::timestamp at time zone s.value as ends
        from guard.settings as s
        where s.name = 'app_timezone'
    ),

    calls as (
        select guard.local_date(c.created_at, p.zone) as day, count(*) as calls
        from period as p
        inner join public.calls as c
            on c.created_at >= guard.bound(p.starts, p.zone, c.created_at)
            and c.created_at < guard.bound(p.ends, p.zone, c.created_at)
        group by 1
    ),

    appointments as (
        select guard.local_date(a.created_at, p.zone) as day, count(*) as appointments
        from period as p
        inner join public.appointments as a
            on a.created_at >= guard.bound(p.starts, p.zone, a.created_at)
            and a.created_at < guard.bound(p.ends, p.zone, a.created_at)
        group by 1
    ),

    defects as (
        select
            (s.seen_at at time zone p.zone)::date as day, s.rule, s.entity_type, s.entity_id,
            bool_or(s.corrected) as corrected
        from period as p
        cross join lateral guard.sightings(p.starts, p.ends) as s
        inner join guard.rules as r on s.rule = r.rule and r.severity <> 'info'
        group by 1, s.rule, s.entity_type, s.entity_id
    ),

    found as (
        select d.day, count(*) as found, count(*) filter (where d.corrected) as corrected
        from defects as d
        group by d.day
    )

    select
        g.day::date as day,
        coalesce(c.calls, 0) as calls,
        coalesce(a.appointments, 0) as appointments,
        coalesce(f.found, 0) as found,
        coalesce(f.corrected, 0) as corrected
    from generate_series((p_until - p_days + 1)::timestamp, p_until::timestamp, interval '1 day') as g (day)
    left join calls as c on g.day::date = c.day
    left join appointments as a on g.day::date = a.day
    left join found as f on g.day::date = f.day
    order by g.day
$$;

comment on function guard.report_days(date, integer) is
'Calls, appointments, and defects found and corrected on each of the days up to one.';

-- The same by company, for critical and warning rules. Where a rule of calls fails, no call is counted as consistent.
create or replace function guard.report_companies(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (
    company_id bigint, calls bigint, consistent_calls bigint, appointments bigint, found bigint, corrected bigint
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with zone as (
        select s.value from guard.settings as s where s.name = 'app_timezone'
    ),

    now_broken as materialized (
        select v.entity_id, v.error from guard.current_violations('call') as v where v.severity <> 'info'
    ),

    defects as (
        select s.rule, s.entity_type, s.entity_id, min(s.company_id) as company_id, bool_or(s.corrected) as corrected
        from guard.sightings(p_from, p_to) as s
        inner join guard.rules as r on s.rule = r.rule and r.severity <> 'info'
        group by s.rule, s.entity_type, s.entity_id
    ),

    counted as (
        select
            c.company_id::bigint as company_id,
            1 as calls,
            (b.entity_id is null and not exists (select from now_broken as f where f.error is not null))::integer
            as consistent_calls,
            0 as appointments,
            0 as found,
            0 as corrected
        from zone as z
        inner join public.calls as c
            on c.created_at >= guard.bound(p_from, z.value, c.created_at)
            and c.created_at < guard.bound(p_to, z.value, c.created_at)
        left join (select distinct n.entity_id from now_broken as n) as b on c.id = b.entity_id
        union all
        select a.company_id::bigint as company_id, 0, 0, 1, 0, 0
        from zone as z
        inner join public.appointments as a
            on a.created_at >= guard.bound(p_from, z.value, a.created_at)
            and a.created_at < guard.bound(p_to, z.value, a.created_at)
        union all
        select d.company_id, 0, 0, 0, 1, d.corrected::integer from defects as d
    )

    select
        c.company_id,
        sum(c.calls) as calls,
        sum(c.consistent_calls) as consistent_calls,
        sum(c.appointments) as appointments,
        sum(c.found) as found,
        sum(c.corrected) as corrected
    from counted as c
    group by c.company_id
    order by c.company_id
$$;

comment on function guard.report_companies(timestamp with time zone, timestamp with time zone) is
'Calls, how many are consistent, appointments, and defects found and corrected in a period, by company.';

-- What the baseline took over was there before guard, and is left out.
create or replace function guard.report_detection(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (mean_seconds numeric, p95_seconds numeric, target_seconds numeric, met boolean, rows_behind bigint)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select
        round(avg(i.detection_seconds), 3) as mean_seconds,
        round((percentile_cont(0.95) within group (order by i.detection_seconds))::numeric, 3) as p95_seconds,
        5.0 as target_seconds,
        percentile_cont(0.95) within group (order by i.detection_seconds) <= 5.0 as met,
        count(i.detection_seconds) as rows_behind
    from guard_bi.incidents as i
    where
        i.entity_id is not null and i.first_seen_at >= p_from and i.first_seen_at < p_to
        and i.resolved_by is distinct from 'baseline'
$$;

comment on function guard.report_detection(timestamp with time zone, timestamp with time zone) is
'From the write to the incident: mean and 95th percentile of a period, in seconds.';

-- The last class, without an upper bound, holds what took longer than the target.
create or replace function guard.report_validations(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (up_to_ms numeric, validations bigint, failed bigint)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select
        b.up_to_ms,
        count(m.id) as validations,
        count(m.id) filter (where not m.success) as failed
    from (
        values (0, 1), (1, 2), (2, 5), (5, 10), (10, 20), (20, 50), (50, 100), (100, null)
    ) as b (over_ms, up_to_ms)
    left join guard.validation_metrics as m
        on m.created_at >= p_from and m.created_at < p_to
        and (m.duration_ms > b.over_ms or (b.over_ms = 0 and m.duration_ms = 0))
        and (m.duration_ms <= b.up_to_ms or b.up_to_ms is null)
    group by b.over_ms, b.up_to_ms
    order by b.over_ms
$$;

comment on function guard.report_validations(timestamp with time zone, timestamp with time zone) is
'How long the validations of a period took, in classes of milliseconds, and how many of each failed.';

-- not_closed is as it is now.
create or replace function guard.report_breakers(p_from timestamp with time zone, p_to timestamp with time zone)
returns table (opened bigint, recovered bigint, mean_recovery_seconds numeric, not_closed text[])
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select
        (
            select count(*)
            from guard_bi.breaker_transitions as t
            where
                t.event = 'transition' and t.from_state = 'closed' and t.to_state = 'open'
                and t.recorded_at >= p_from and t.recorded_at < p_to
        ) as opened,
        o.recovered,
        o.mean_recovery_seconds,
        (
            select coalesce(array_agg(s.circuit_key order by s.circuit_key), '{}')
            from guard_bi.breaker_states as s
            where s.status <> 'closed'
        ) as not_closed
    from (
        select count(*) as recovered, round(avg(b.duration_seconds), 3) as mean_recovery_seconds
        from guard_bi.breaker_outages as b
        where b.closed_at >= p_from and b.closed_at < p_to
    ) as o
$$;

comment on function guard.report_breakers(timestamp with time zone, timestamp with time zone) is
'How often circuits opened and recovered in a period, how long that took, and which are not closed now.';

create or replace function guard.report_queue(p_at timestamp with time zone)
returns table (open_items bigint, oldest_at timestamp with time zone, most_urgent integer)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select count(*) as open_items, min(q.created_at) as oldest_at, min(q.priority) as most_urgent
    from guard.manual_review_queue as q
    where q.created_at < p_at and (q.resolved_at is null or q.resolved_at >= p_at)
$$;

comment on function guard.report_queue(timestamp with time zone) is 'What waited for a person at a moment.';

grant execute on function guard.report_rules(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.report_days(date, integer) to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.report_companies(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.report_detection(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.report_validations(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.report_breakers(timestamp with time zone, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.report_queue(timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;
