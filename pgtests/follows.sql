-- A call that follows a repaired appointment keeps its value before, and is no defect of its own.
begin;
select plan(4);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (
    id, company_id, direction, booking_id, session_outcome, appointment_made, appointment_link_status
)
values
(1, 1, 'inbound', 'bk_1', 'callback', false, null), (2, 1, 'inbound', null, null, false, 'linked'),
(3, 1, 'inbound', 'bk_3', 'callback', true, null);
insert into public.appointments (id, company_id, source, calcom_v2_booking_id)
values (1, 1, 'retell_webhook', 'bk_1'), (3, 1, null, 'bk_3');
update public.calls set updated_at = now() - interval '1 hour', created_at = now() - interval '1 hour';
update guard.rules set mode = 'correct'
where rule = any('{orphaned_appointment,inconsistent_link_status,missing_appointment}');
select guard.reconcile(false);

create temporary view changed as
select a.alert_type as rule, a.entity_id, a.metadata ->> 'follows' as follows, m."column", m.before
from guard.data_consistency_alerts as a
cross join lateral jsonb_to_recordset(a.metadata -> 'changes') as m ("column" text, before text)
where
    a.entity_type = 'call'
    and a.metadata ->> 'by' = 'repair'
    and m."column" = any('{session_outcome,appointment_made}');
select results_eq(
    'select rule, "column", before, follows from changed where entity_id = 1 order by 2',
    $$values
        ('inconsistent_link_status', 'appointment_made', 'false', 'orphaned_appointment'),
        ('inconsistent_link_status', 'session_outcome', 'callback', 'orphaned_appointment')$$,
    'it follows the orphan'
);
select results_eq(
    $$select "column", before, follows from changed where entity_id = 3 and rule = 'inconsistent_link_status'$$,
    $$values ('session_outcome', 'callback', 'missing_appointment')$$, 'or the evidence of a phantom'
);
select results_eq(
    $$select metadata ->> 'follows' from guard.data_consistency_alerts
    where alert_type = 'inconsistent_link_status' and entity_id = 2$$,
    array[null::text], 'a defect of its own follows nothing'
);
select is_empty(
    $$select from guard.data_consistency_alerts
    where alert_type <> 'inconsistent_link_status' and metadata ? 'follows'$$,
    'nor does what is repaired'
);

select * from finish();
rollback;
