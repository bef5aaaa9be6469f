-- Alerts are partitioned by month; rows that came before their month's partition are moved into it.
begin;
select plan(8);

select is_empty('select from guard.data_consistency_alerts', 'no alerts yet');
insert into guard.data_consistency_alerts (alert_type, severity, entity_type, description, detected_at)
values
('t', 'info', 'call', 'd', '2040-03-31 23:59:59+00'), ('t', 'info', 'call', 'd', '2040-04-01 00:00+00'),
('t', 'info', 'call', 'd', '2040-05-01 00:00+00');
select is(
    (select count(*) from guard.data_consistency_alerts_default), 3::bigint,
    'without a month they go to the default partition'
);
set local timezone = 'Pacific/Auckland';
select results_eq(
    $$select guard.ensure_alert_partitions('2040-03-15', 1)$$,
    array['data_consistency_alerts_2040_03', 'data_consistency_alerts_2040_04'], 'two months are made'
);
select results_eq(
    'select (select count(*) from guard.data_consistency_alerts_2040_03),
    (select count(*) from guard.data_consistency_alerts_2040_04), (select count(*) from guard.data_consistency_alerts_default)',
    'values (1::bigint, 1::bigint, 1::bigint)', 'each row is in its month, in UTC'
);
select is_empty($$select guard.ensure_alert_partitions('2040-03-15', 1)$$, 'again: nothing to do');
insert into guard.data_consistency_alerts (alert_type, severity, entity_type, description, detected_at)
values ('t', 'info', 'call', 'd', '2040-04-30 23:59:59+00');
select is((select count(*) from guard.data_consistency_alerts_2040_04), 2::bigint, 'new rows go to their month');
select is(
    (
        select count(*) from pg_catalog.pg_index as i
        where i.indrelid = 'guard.data_consistency_alerts_2040_04'::regclass
    ),
    (select count(*) from pg_catalog.pg_index as i where i.indrelid = 'guard.data_consistency_alerts'::regclass),
    'a month has the indexes'
);
select isnt_empty(
    $$select from pg_catalog.pg_inherits where inhrelid = to_regclass(
        'guard.data_consistency_alerts_' || to_char(now() at time zone 'UTC', 'YYYY_MM'))$$,
    'this month is there from the start'
);

select * from finish();
rollback;
