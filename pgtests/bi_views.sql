-- What a BI tool may rely on in guard_bi, read from the catalog; and what a reader sees there.
begin;
select plan(24);

create temporary view bi as
select c.oid, c.relname, c.reloptions, c.relkind, c.relowner, a.attname, format_type(a.atttypid, null) as type, a.attnum
from pg_catalog.pg_class as c
inner join pg_catalog.pg_attribute as a on c.oid = a.attrelid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'guard_bi'::regnamespace;

select is_empty($$select from bi where relkind <> 'v'$$, 'guard_bi holds views and nothing else');
select is_empty(
    $$select relname from bi where not coalesce(reloptions, '{}') @> '{security_invoker=true}'$$,
    'every view is security_invoker'
);
select is_empty($$select relname from bi where relowner <> 'guard_owner'::regrole$$, 'and belongs to guard_owner');
select is_empty(
    $$select relname, attname, type from bi
    where type not in ('bigint', 'integer', 'numeric', 'text', 'boolean', 'date', 'timestamp with time zone')$$,
    'no json, no arrays, no intervals, no local timestamps'
);
select is_empty(
    $$select relname, attname from bi where type = 'timestamp with time zone'
    and (relname, left(attname, -3) || '_date') not in (select relname, attname from bi where type = 'date')$$,
    'every moment has its day beside it'
);
select is_empty($$select relname from bi where obj_description(oid, 'pg_class') is null$$, 'every view has a comment');
select is_empty($$select relname, attname from bi where col_description(oid, attnum) is null$$, 'and every column');
select is_empty(
    $$select relname, attname from bi
    where attname ~ 'number|phone|from_|to_n|note|context|resolution$|details|metadata'
    and attname <> 'from_state'$$,
    'no phone numbers, and no free text that may hold one'
);
select is_empty(
    $$select b.relname from (select distinct relname from bi) as b
    where to_regclass('public.' || b.relname) is not null$$,
    'no view hides a table of the application''s in a search path'
);
select bag_eq(
    $$select distinct relname::text from bi where relname !~ '^(breaker|dates)'
    and relname not in (select relname from bi where attname = 'company_id')$$,
    $$select ''::text where false$$, 'what belongs to a company says so'
);

insert into public.companies (id, name) values (1, 'A');
select guard.set_setting('app_timezone', 'Asia/Tokyo');
insert into public.calls (id, company_id, direction, from_number, created_at)
values (1, 1, 'inbound', '+4915112345678', '2026-01-10 15:00+00'), (2, 1, 'inbound', null, '2026-01-10 14:59+00'),
(3, 1, 'inbound', null, now());
select results_eq(
    $$select call_id, created_date, is_consistent, open_defects
    from guard_bi.call_consistency where call_id < 3 order by 1$$,
    $$values (1::bigint, date '2026-01-11', true, 0::bigint), (2, '2026-01-10', true, 0)$$,
    'days are those of app_timezone'
);
insert into guard.incidents (fingerprint, rule, severity, entity_type, entity_id, description)
values ('1', 'missing_direction', 'warning', 'call', 1, 'x'), ('2', 'missing_appointment', 'critical', 'call', 1, 'x'),
('3', 'recent_creation_failure', 'info', 'call', 2, 'x');
insert into guard.baseline (rule, entity_type, entity_id, company_id) values ('missing_direction', 'call', 1, 1),
('inconsistent_link_status', 'call', 3, 1);
select results_eq(
    'select is_consistent, open_defects, rule, severity, is_legacy from guard_bi.call_consistency order by call_id',
    $$values (false, 2::bigint, 'missing_appointment, missing_direction', 'critical', true),
    (true, 0, null, null, false), (false, 1, 'inconsistent_link_status', 'warning', true)$$,
    'a call is joined with what stands against it'
);
update guard.incidents set status = 'resolved', resolved_at = now();
update guard.baseline set cleared_at = now();
select is_empty('select from guard_bi.call_consistency where not is_consistent', 'until it is gone');

insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description,
    metadata, auto_corrected, corrected_at
)
values (
    'missing_direction', 'warning', 'call', 1, 1, 'x',
    '{"mode": "correct", "changes": [{"column": "direction", "before": null, "after": "inbound"},
    {"column": "from_number", "before": "+4915112345678", "after": null}]}', true, now()
),
('missing_direction', 'warning', 'call', 2, 1, 'x', '{"mode": "observe"}', false, null),
('own_rule', 'warning', 'call', 2, 1, 'x', '{"changes": "none"}', true, now());
select results_eq(
    'select column_name, value_before, value_after from guard_bi.corrections order by column_name',
    $$values ('direction', null, 'inbound'), ('from_number', null, null)$$, 'each corrected value, without numbers'
);
select results_eq(
    $$select rule, status, alerts from guard_bi.alerts_daily order by rule, status$$,
    $$values ('missing_direction', 'corrected', 1::bigint), ('missing_direction', 'recorded', 1),
    ('own_rule', 'corrected', 1)$$, 'alerts by day'
);
select is(
    (select max(i.detection_seconds) from guard_bi.incidents as i), null,
    'a latency that is not known is not zero'
);
select ok(
    (select min(d.calendar_date) = '2020-01-01' and max(d.calendar_date) > current_date + 364 from guard_bi.dates as d),
    'the dates reach into next year'
);
select is((select d.iso_week from guard_bi.dates as d where d.calendar_date = '2021-01-03'), 53, 'weeks are ISO weeks');

-- in Tokyo the first day ends at 15:00
insert into guard.circuit_breaker_events (circuit_key, event, from_state, to_state, generation, created_at)
values ('a', 'transition', 'closed', 'open', 1, '2026-01-10 14:58+00'),
('a', 'transition', 'open', 'half_open', 2, '2026-01-10 14:59:00+00'),
('a', 'transition', 'half_open', 'closed', 3, '2026-01-10 14:59:10+00'),
('a', 'transition', 'closed', 'open', 4, '2026-01-10 14:59:30+00'),
('b', 'transition', 'closed', 'open', 1, '2026-01-10 15:00+00'),
('a', 'override', 'open', 'forced_closed', 5, '2026-01-10 15:00:00+00');
select results_eq(
    $$select recorded_date, circuit_key, event, from_state, to_state, transitions
    from guard_bi.breaker_transitions_daily order by 1, 2, 6 desc, 4$$,
    $$values (date '2026-01-10', 'a', 'transition', 'closed', 'open', 2::bigint),
    ('2026-01-10', 'a', 'transition', 'half_open', 'closed', 1), ('2026-01-10', 'a', 'transition', 'open', 'half_open', 1),
    ('2026-01-11', 'a', 'override', 'open', 'forced_closed', 1), ('2026-01-11', 'b', 'transition', 'closed', 'open', 1)$$,
    'what became of the circuits, by day'
);
select results_eq(
    $$select closed_date, circuit_key, outages, mean_seconds, max_seconds
    from guard_bi.breaker_outages_daily order by 1$$,
    $$values (date '2026-01-10', 'a', 1::bigint, 70.000, 70.000), ('2026-01-11', 'a', 1, 30.000, 30.000)$$,
    'and outages by the day of their end'
);

-- cheap: a count over all calls needs no join with what stands against them
create temporary table plans (plan text);
do $$
declare
    v_line text;
begin
    for v_line in explain select count(*) from guard_bi.call_consistency loop
        insert into plans values (v_line);
    end loop;
end
$$;
select is_empty($$select plan from plans where plan ~ 'incidents|baseline'$$, 'counting calls asks for nothing else');

create role guard_test_reader nologin;
grant guard_reader to guard_test_reader;
create temporary table names as select distinct relname from bi;
grant select on names to guard_test_reader;
set local role guard_test_reader;
select is(
    (select count(query_to_xml(format('table guard_bi.%I', n.relname), false, false, '')) from names as n), 21::bigint,
    'a reader reads every view'
);
select throws_ok('select from_number from public.calls', '42501', null, 'and no phone number');
select throws_ok('select guard.daily_report(current_date)', '42501', null, 'and makes no report');

select * from finish();
rollback;
