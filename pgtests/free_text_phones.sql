-- A phone number in what an application writes as a reason is readable in no view for BI tools, nor in the queue.
begin;
select plan(6);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, retell_call_id, booking_failure_reason)
values (20, 1, 'inbound', 'call_a', 'caller 0171-1234567 busy'), (21, 1, 'inbound', 'call_b', null);
select guard.rollback_booking(20, 'customer +49 151 1234 5678 hung up');
select is(
    guard.queue_review(21, 'call +49 151 1234 5678'), guard.queue_review(21, 'call +49 151 1234 5678'),
    'a masked reason is one reason'
);
insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description, metadata, auto_corrected, corrected_at
)
values (
    'orphaned_appointment', 'warning', 'appointment', 1, 1, 'x',
    '{"changes": [{"column": "call_id", "before": null, "after": 1234567890},
    {"column": "linked", "before": false, "after": "2026-01-02T03:04:05.123456"},
    {"column": "booking_details", "before": {"caller": "+4915112345678"}, "after": null}]}', true, now()
);

select results_eq(
    'select reason from guard.manual_review_queue order by id',
    $$values ('customer ***78 hung up'), ('call ***78')$$, 'the queue has it masked'
);
select is_empty(
    $$select from guard.audit_log as l where to_jsonb(l)::text ~ '151'$$, 'and so has the audit log'
);
select results_eq(
    $$select value_before, value_after from guard_bi.corrections where column_name = 'booking_failure_reason'$$,
    $$values ('caller ***67 busy', 'customer ***78 hung up')$$, 'a value before is masked'
);
select results_eq(
    $$select column_name, value_before, value_after from guard_bi.corrections where entity_type = 'appointment'
    order by column_name$$,
    $$values ('booking_details', '{"caller": "***78"}', null), ('call_id', null, '1234567890'),
    ('linked', 'false', '2026-01-02T03:04:05.123456')$$, 'an id is no phone number'
);
select is_empty(
    $$select c.relname from pg_catalog.pg_class as c
    where c.relnamespace = 'guard_bi'::regnamespace
    and query_to_xml(format('table guard_bi.%I', c.relname), false, false, '')::text ~ '1234 ?567(?!890)'$$,
    'no view shows a number'
);

select * from finish();
rollback;
