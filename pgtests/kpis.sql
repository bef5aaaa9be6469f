-- The KPIs, each on rows made by hand: a target, a value that is measured or null, and the rows behind it.
begin;
select plan(34);

set local timezone = 'UTC';
select guard.set_setting('app_timezone', 'UTC');
create function pg_temp.kpi(p_kpi text, p_company bigint = null)
returns table (value numeric, met boolean, rows_behind bigint)
language sql
as $$
    select k.value, k.met, k.rows_behind
    from guard.kpis('2026-01-10', '2026-01-11', p_company) as k where k.kpi = p_kpi
$$;

select results_eq(
    $$select kpi, target, unit, comparison from guard.kpis('2026-01-10', '2026-01-11')$$,
    $$values ('consistency_rate', 99.5, '%', '>='), ('validation_p95', 100, 'ms', '<='),
    ('breaker_recovery', 60, 's', '<='), ('alert_response', 5, 'min', '<='), ('auto_correction_rate', 90, '%', '>='),
    ('queue_size', 10, 'items', '<='), ('false_positive_rate', 1, '%', '<=')$$,
    'seven KPIs with their targets'
);
select is_empty(
    $$select from guard.kpis('2026-01-10', '2026-01-11')
    where kpi <> 'queue_size' and (value is not null or met is not null or rows_behind <> 0)$$,
    'what has no rows is not measured, and not met'
);
select results_eq(
    $$select * from pg_temp.kpi('queue_size')$$,
    'values (0::numeric, true, 0::bigint)',
    'but for a queue, which is empty'
);

-- ten calls in the period, one before it, one after it; two of the ten are phantoms
insert into public.companies (id, name) values (1, 'A'), (2, 'B');
set local session_replication_role = replica;
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
select
    c.id,
    case when c.id <= 8 then 1 else 2 end,
    'inbound',
    case when c.id in (1, 10, 11) then 'appointment_booked' else 'no_booking' end,
    c.id in (1, 10, 11),
    c.created_at,
    c.created_at as updated_at
from (
    select
        g as id,
        case g
            when 9 then timestamptz '2026-01-10 00:00:00'
            when 11 then '2026-01-09 23:59:59'
            when 12 then '2026-01-11 00:00:00'
            else '2026-01-10 12:00:00'
        end as created_at
    from generate_series(1, 12) as g
) as c;
set local session_replication_role = origin;
select results_eq(
    $$select * from pg_temp.kpi('consistency_rate')$$, 'values (80::numeric, false, 10::bigint)',
    'consistency: of the calls of the period, those that break no rule now'
);
select results_eq(
    $$select * from pg_temp.kpi('consistency_rate', 1)$$, 'values (87.5, false, 8::bigint)', 'and of one company'
);
insert into guard.incidents (
    fingerprint, rule, severity, entity_type, entity_id, company_id, description, is_false,
    first_seen_at, status, resolved_at
)
values (
    'missing_appointment:call:1', 'missing_appointment', 'critical', 'call', 1, 1, 'x', true,
    '2026-01-10 13:00', 'resolved', '2026-01-10 13:02'
);
select is(
    (select k.value from pg_temp.kpi('consistency_rate') as k),
    90::numeric,
    'what a person found to be false breaks no rule'
);
select results_eq(
    $$select * from pg_temp.kpi('false_positive_rate')$$, 'values (100::numeric, false, 1::bigint)',
    'false positives: one incident, and it was none'
);
insert into guard.incidents (
    fingerprint, rule, severity, entity_type, entity_id, company_id, description,
    first_seen_at, status, acknowledged_at
)
select
    'x:' || g, 'tenant_mismatch', 'critical', 'appointment', g, 2, 'x', '2026-01-10 14:00', 'acknowledged',
    '2026-01-10 14:06'
from generate_series(1, 3) as g;
select is((select k.value from pg_temp.kpi('false_positive_rate') as k), 25::numeric, 'one of four');
select results_eq(
    $$select * from pg_temp.kpi('false_positive_rate', 2)$$,
    'values (0::numeric, true, 3::bigint)',
    'none of the others'
);
select results_eq(
    $$select * from pg_temp.kpi('alert_response')$$, 'values (5::numeric, true, 4::bigint)',
    'response: (2 + 6 + 6 + 6) / 4 minutes, to the first reaction or the end'
);
insert into guard.incidents (fingerprint, rule, severity, entity_type, entity_id, description, first_seen_at)
values ('warned', 'missing_direction', 'warning', 'call', 2, 'x', '2026-01-10 14:00'),
('job', 'job_failed', 'critical', 'job', null, 'x', '2026-01-11 00:00');
select is((select k.rows_behind from pg_temp.kpi('alert_response') as k), 4::bigint, 'to critical ones of the period');
insert into guard.incidents (fingerprint, rule, severity, entity_type, description, first_seen_at)
values ('waiting', 'rule_failed', 'critical', 'rule', 'x', '2026-01-10 14:00');
select results_eq(
    $$select k.met, k.value > 1000 from pg_temp.kpi('alert_response') as k$$, 'values (false, true)',
    'one that nobody reacts to counts with the time that it has waited'
);
update guard.incidents set status = 'resolved', resolved_at = now(), resolved_by = 'baseline'
where fingerprint = 'waiting';
select is(
    (select k.value from pg_temp.kpi('alert_response') as k), 5::numeric, 'but for what the baseline took over'
);
update guard.incidents set acknowledged_at = first_seen_at - interval '1 day' where fingerprint = 'x:1';
select is(
    (select k.met from pg_temp.kpi('alert_response') as k),
    false,
    'a reaction to an earlier occurrence is none to this one'
);

insert into guard.validation_metrics (call_id, success, duration_ms, created_at)
select g % 10 + 1, true, g, '2026-01-10 12:00' from generate_series(1, 101) as g;
select results_eq(
    $$select * from pg_temp.kpi('validation_p95')$$, 'values (96::numeric, true, 101::bigint)', 'the 95th percentile'
);
insert into guard.validation_metrics (success, duration_ms, created_at)
values (true, 1e6, '2026-01-09 23:59:59'), (true, 1e6, '2026-01-11');
select is((select k.value from pg_temp.kpi('validation_p95') as k), 96::numeric, 'of the period');

insert into guard.circuit_breaker_events (circuit_key, event, from_state, to_state, generation, created_at)
values ('a', 'transition', 'closed', 'open', 1, '2026-01-09 23:59:50'),
('a', 'transition', 'open', 'half_open', 2, '2026-01-10 00:00:20'),
('a', 'transition', 'half_open', 'open', 3, '2026-01-10 00:00:21'),
('b', 'transition', 'closed', 'open', 1, '2026-01-10 00:00:30'),
('a', 'transition', 'open', 'half_open', 4, '2026-01-10 00:00:51'),
('a', 'transition', 'half_open', 'closed', 5, '2026-01-10 00:00:55'),
('b', 'override', 'open', 'closed', 2, '2026-01-10 00:01:25'),
('c', 'override', 'closed', 'forced_open', 1, '2026-01-10 01:00:00'),
('c', 'override', 'forced_open', 'closed', 2, '2026-01-10 02:00:00'),
('d', 'transition', 'closed', 'open', 1, '2026-01-10 03:00:00');
select results_eq(
    $$select * from pg_temp.kpi('breaker_recovery')$$, 'values (60::numeric, true, 2::bigint)',
    'recovery: whole outages that ended, (65 + 55) / 2 s; neither what was forced nor what lasts'
);
select is_empty($$select * from pg_temp.kpi('breaker_recovery', 1)$$, 'circuits belong to no company');

insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description,
    detected_at, auto_corrected, corrected_at
)
select 'missing_direction', 'warning', 'call', g, 1, 'x', '2026-01-10 12:00', g <= 9, case when g <= 9 then now() end
from generate_series(1, 10) as g;
select results_eq(
    $$select * from pg_temp.kpi('auto_correction_rate')$$, 'values (90::numeric, true, 10::bigint)', 'nine of ten'
);
insert into guard.data_consistency_alerts (alert_type, severity, entity_type, entity_id, description, detected_at)
select 'duplicate_booking', 'critical', 'appointment', g, 'x', '2026-01-10 12:00' from generate_series(1, 10) as g;
select is(
    (select k.rows_behind from pg_temp.kpi('auto_correction_rate') as k), 10::bigint,
    'what cannot be repaired does not count'
);
insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description,
    detected_at, auto_corrected, corrected_at
)
values ('missing_direction', 'warning', 'call', 10, 1, 'x', '2026-01-10 13:00', true, now());
select results_eq(
    $$select * from pg_temp.kpi('auto_correction_rate')$$, 'values (100::numeric, true, 10::bigint)',
    'found first, corrected later: one defect'
);

insert into guard.manual_review_queue (call_id, reason, priority, created_at, status, resolution, resolved_at)
values (1, 'before', 1, '2026-01-01', 'resolved', 'x', '2026-01-10 23:00'),
(2, 'then', 1, '2026-01-10 12:00', 'resolved', 'x', '2026-01-11 00:00'),
(3, 'after', 1, '2026-01-11', 'pending', null, null);
select results_eq(
    $$select * from pg_temp.kpi('queue_size')$$, 'values (1::numeric, true, 1::bigint)',
    'the queue as it was at the end of the period'
);
insert into guard.manual_review_queue (call_id, reason, priority, created_at)
select null, 'r' || g, 5, '2026-01-05' from generate_series(1, 10) as g;
select results_eq($$select * from pg_temp.kpi('queue_size')$$, 'values (11::numeric, false, 11::bigint)', 'too long');
select results_eq(
    $$select * from pg_temp.kpi('queue_size', 1)$$, 'values (1::numeric, true, 1::bigint)', 'of one company'
);

-- every value is what its query gives
create function pg_temp.recomputed(p_source text)
returns table (value numeric, rows_behind bigint)
language plpgsql
as $$
begin
    return query execute p_source;
end
$$;
select is(
    (
        select count(*)
        from guard.kpis('2026-01-10', '2026-01-11') as k
        cross join lateral pg_temp.recomputed(k.source) as r
        where (k.value, k.rows_behind) is not distinct from (r.value, r.rows_behind)
    ),
    7::bigint, 'the query that comes with a value gives the same value'
);

-- local days
select guard.set_setting('app_timezone', 'America/New_York');
select is(
    (select k.rows_behind from guard.kpis('2026-01-10', '2026-01-11') as k where k.kpi = 'consistency_rate'),
    10::bigint,
    'instants are instants in every zone'
);

-- a rule whose view fails
drop view guard.missing_direction;
create view guard.missing_direction with (security_invoker = true) as
select
    rule, severity, 'call' as entity_type, (1 / (length(rule) - length(rule)))::bigint as entity_id, 1::bigint
        as company_id, now() as occurred_at, '{}'::jsonb as details
from guard.rules where rule = 'missing_direction';
select results_eq(
    $$select rule, error from guard.current_violations() where error is not null$$,
    $$values ('missing_direction', 'its view failed with SQLSTATE 22012')$$,
    'it is named, without the text of the error'
);
select isnt_empty(
    $$select from guard.current_violations() where rule = 'missing_appointment'$$,
    'and the others are asked all the same'
);
select results_eq(
    $$select * from pg_temp.kpi('consistency_rate')$$, 'values (null::numeric, null::boolean, 10::bigint)',
    'but consistency is not known then'
);

select throws_ok($$select guard.kpis('2026-01-11', '2026-01-11')$$, 'ZG701', null, 'an empty period');
select throws_ok($$select guard.kpis(null, '2026-01-11')$$, 'ZG701', null, 'no period');
select throws_ok($$select guard.kpis('-infinity', 'infinity')$$, 'ZG701', null, 'no bounds');
select throws_ok($$select guard.kpis('2026-01-10', '2026-01-11', 7)$$, 'ZG703', null, 'no such company');

create role guard_test_reader nologin;
grant guard_reader to guard_test_reader;
set local role guard_test_reader;
select is((select count(*) from guard.kpis('2026-01-10', '2026-01-11')), 7::bigint, 'a reader measures, too');

select * from finish();
rollback;
