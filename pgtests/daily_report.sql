-- The report of a day: what it counts, that it can be made again, and whom it tells.
begin;
select plan(26);

select guard.set_setting('app_timezone', 'Europe/Berlin');
create temporary view yesterday as
select (now() at time zone 'Europe/Berlin')::date - 1 as day;
create temporary view noon as
select ((select day from yesterday) + time '12:00') at time zone 'Europe/Berlin' as at;

insert into public.companies (id, name) values (1, 'A'), (2, 'B');
set local session_replication_role = replica;
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
select
    g.id, case when g.id <= 3 then 1 else 2 end, 'inbound', case when g.id = 1 then 'appointment_booked' end, g.id = 1,
    n.at - case when g.id = 5 then interval '1 day' else '0' end, n.at
from generate_series(1, 5) as g (id) cross join noon as n;
insert into public.appointments (id, company_id, call_id, created_at) select 1, 1, 2, n.at from noon as n;
update
    public.calls set
    appointment_made = true, session_outcome = 'appointment_booked',
    appointment_link_status = 'linked'
where id = 2;
set local session_replication_role = origin;
delete from guard.data_consistency_alerts;
-- found: call 1 by an incident and an alert, which still stands; call 3, corrected; call 4, gone by itself; a fact
insert into guard.incidents (
    fingerprint, rule, severity, entity_type, entity_id, company_id, description, occurred_at,
    first_seen_at
)
select 'missing_appointment:call:1', 'missing_appointment', 'critical', 'call', 1, 1, 'x', n.at, n.at + interval '4 s'
from noon as n
union all
select
    'inconsistent_link_status:call:4',
    'inconsistent_link_status',
    'warning',
    'call',
    4,
    2,
    'x',
    n.at,
    n.at + interval '2 s'
from noon as n
union all
select 'job', 'job_failed', 'critical', 'job', null, null, 'x', n.at, n.at + interval '1 hour' from noon as n;
insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description,
    detected_at, auto_corrected, corrected_at
)
select v.rule, 'warning', 'call', v.id, v.company, 'x', n.at, v.corrected, case when v.corrected then n.at end
from noon as n
cross join (
    values ('missing_appointment', 1, 1, false), ('missing_direction', 3, 1, true),
    ('recent_creation_failure', 4, 2, false)
) as v (rule, id, company, corrected);
insert into guard.data_consistency_alerts (alert_type, severity, entity_type, entity_id, description, detected_at)
select 'missing_direction', 'warning', 'call', g.id, 'x', n.at - interval '8 days'
from generate_series(1, 2) as g (id) cross join noon as n;

create temporary table report as select guard.daily_report((select day from yesterday)) as r;

select is((select r ->> 'date' from report), (select day::text from yesterday), 'the day');
select is((select r -> 'complete' from report), 'true'::jsonb, 'which is over');
select is(
    (select r -> 'totals' from report),
    '{"calls": 4, "appointments": 1, "found": 3, "corrected": 1, "recovered": 2, "standing": 1,
    "inconsistency_rate_pct": 75.00, "recovery_rate_pct": 66.67}'::jsonb,
    'totals: a defect counts once, and a fact not at all'
);
select is(
    (
        select array[v.found, v.corrected, v.recovered, v.standing]
        from report as p
        cross join
            lateral jsonb_to_recordset(p.r -> 'rules')
                as v (rule text, found int, corrected int, recovered int, standing int)
        where v.rule = 'recent_creation_failure'
    ),
    array[1, 0, 1, 0], 'which has its line in the breakdown'
);
select is((select r #> '{top_issues,0,cases}' from report), '1'::jsonb, 'the top issues');
select is(
    (
        select i ->> 'action' from report as p cross join lateral jsonb_array_elements(p.r -> 'top_issues') as i
        where i ->> 'rule' = 'missing_appointment'
    ),
    (select u.runbook from guard.rules as u where u.rule = 'missing_appointment'), 'with what to do about them'
);
select is(
    (select r -> 'trend' from report),
    '{"found_last_7_days": 3, "found_7_days_before": 2, "change_pct": 50.0}'::jsonb, 'against the week before'
);
select is(
    (select r -> 'detection' from report),
    '{"mean_seconds": 3.000, "p95_seconds": 3.900, "target_seconds": 5.0, "met": true, "rows_behind": 2}'::jsonb,
    'how long detection took'
);
select is((select jsonb_array_length(r -> 'days') from report), 14, 'two weeks of days');
select ok(
    (select (r -> 'action_items')::text like '%guard reconcile%' from report), 'what a person should do'
);
select is((select d.report from guard.daily_reports as d), (select r from report), 'it is stored');
select results_eq(
    $$select company_id, calls, consistent_calls, appointments, found, corrected
    from guard.daily_company_totals order by company_id$$,
    $$values (1::bigint, 3::bigint, 2::bigint, 1::bigint, 2::bigint, 1::bigint), (2, 1, 1, 0, 1, 0)$$,
    'and rolled up by company'
);
select results_eq(
    $$select company_id, value, met from guard.daily_kpis where kpi = 'consistency_rate' order by company_id$$,
    $$values (1::bigint, 66.666667, false), (2, 100::numeric, true), (null, 75::numeric, false)$$,
    'as are the KPIs'
);
select is((select count(*) from guard.notifications where kind = 'daily_report'), 1::bigint, 'it is announced');
select matches(
    (select n.message from guard.notifications as n where n.kind = 'daily_report'),
    '^Report of [-\d]{10}\nCalls: 4, appointments: 1\nInconsistencies: 3 found, 1 corrected, 1 standing\n'
    || 'Review queue: 0 open\n\n'
    || 'Rules:\n'
    || '- missing_appointment, critical: 1 found, 0 corrected, 1 standing\n  [^\n]*has no appointment\n'
    || '- inconsistent_link_status, warning: 1 found, 0 corrected, 0 standing\n  [^\n]+\n'
    || '(- [^\n]+\n  [^\n]+\n)+\n'
    || 'To do:\n'
    || '- One standing defect that guard may repair: missing_appointment \(1\)\.\n  [^\n]*guard reconcile\n',
    'with what was found, why, and what to do'
);

-- every part is what its query gives
create function pg_temp.rows_of(p_query text)
returns jsonb
language plpgsql
as $$
declare
    v_rows jsonb;
begin
    execute format('select jsonb_agg(to_jsonb(q)) from (%s) as q', p_query) into v_rows;
    return v_rows;
end
$$;
set local timezone = 'Europe/Berlin';
select is_empty(
    $$select q.key from report as p
    cross join lateral jsonb_each_text(p.r -> 'queries') as q (key, query)
    cross join lateral pg_temp.rows_of(q.query) as w (part)
    where r -> q.key is distinct from case jsonb_typeof(r -> q.key)
        when 'array' then w.part when 'object' then w.part -> 0 else w.part #> '{0,count}'
    end$$,
    'the query that comes with a part gives the same part'
);
select is(
    (
        select count(*) from report as p cross join lateral jsonb_array_elements(p.r -> 'kpis') as k
        where pg_temp.rows_of(k ->> 'source') -> 0 -> 'value' = k -> 'value'
    ),
    7::bigint, 'and so do those of the KPIs'
);

update guard.data_consistency_alerts set auto_corrected = true, corrected_at = now() where entity_id = 1;
select is(
    guard.daily_report((select day from yesterday)) #> '{totals,corrected}',
    '2'::jsonb,
    'again: it is brought up to date'
);
select results_eq(
    $$select
        (select count(*) from guard.daily_reports),
        (select count(*) from guard.daily_kpis where company_id is null)$$,
    'values (1::bigint, 7::bigint)', 'and stored once'
);
select is((select count(*) from guard.notifications where kind = 'daily_report'), 1::bigint, 'and announced once');
select is(
    guard.report_message(
        '{"date": "2026-01-02", "totals": {"calls": 0, "appointments": 0, "found": 0, "corrected": 0, "standing": 0},
        "queue": {"open_items": 0}, "rules": [{"rule": "missing_direction", "found": 0, "standing": 0}],
        "action_items": []}'
    ),
    e'Report of 2026-01-02\nCalls: 0, appointments: 0\nInconsistencies: 0 found, 0 corrected, 0 standing\n'
    'Review queue: 0 open\n\nTo do: nothing', 'a day on which nothing was wrong'
);

select is(
    guard.daily_report((select day + 1 from yesterday)) -> 'complete', 'false'::jsonb, 'a day that is not over'
);
select is(
    guard.daily_report('1999-12-31') -> 'totals' -> 'inconsistency_rate_pct',
    'null'::jsonb,
    'a day without calls has no rate'
);
select is((select count(*) from guard.notifications where kind = 'daily_report'), 1::bigint, 'neither is announced');
select throws_ok($$select guard.daily_report(current_date + 7)$$, 'ZG702', null, 'a day to come');
select throws_ok($$select guard.daily_report(null)$$, 'ZG704', null, 'no day');

select * from finish();
rollback;
