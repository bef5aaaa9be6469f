-- What stands in the tables is repaired where it may be, and queued once where it may not.
begin;
select plan(24);

insert into public.companies (id, name) values (1, 'A'), (2, 'B');
insert into public.customers (id, company_id, name) values (1, 1, 'C');
update guard.rules set mode = 'off';
insert into public.calls (
    id, company_id, direction, customer_id, session_outcome, appointment_made, appointment_link_status, booking_id,
    created_at, updated_at
)
select c.*, now() - interval '1 day', now() - interval '1 day'
from (
    values
    (1, 1, null, null, null, false, null, null),
    (2, 1, 'inbound', null, 'appointment_booked', false, null, null),
    (3, 1, 'inbound', null, 'appointment_booked', true, 'linked', null),
    (4, 1, 'inbound', null, 'abandoned', true, 'linked', null),
    (5, 1, 'inbound', null, null, false, null, 'bk_5'),
    (7, 1, 'inbound', 1, null, false, null, null),
    (8, 1, 'inbound', null, null, false, 'linked', null),
    (9, 1, 'inbound', null, 'appointment_booked', true, null, 'bk_9'),
    (10, 1, 'inbound', null, 'appointment_booked', true, 'linked', null)
) as c (id, company_id, direction, customer_id, outcome, made, link, booking_id);
insert into public.appointments (id, company_id, call_id, source, calcom_v2_booking_id)
values
(4, 1, 4, null, null), (5, 1, null, 'retell_webhook', 'bk_5'), (6, 1, null, 'retell_webhook', 'bk_6'),
(9, 1, null, null, 'bk_9'), (10, 2, 10, null, null);
update guard.rules set mode = 'observe';

create temporary table wrong as
select 'missing_direction' as rule, entity_id from guard.missing_direction
union all
select rule, entity_id from guard.session_outcome_mismatch
union all
select rule, entity_id from guard.appointment_made_mismatch
union all
select rule, entity_id from guard.missing_appointment
union all
select rule, entity_id from guard.orphaned_appointment
union all
select rule, entity_id from guard.inconsistent_link_status
union all
select rule, entity_id from guard.inconsistent_customer_link
union all
select rule, entity_id from guard.tenant_mismatch;
select results_eq(
    'select rule, entity_id from wrong order by 1, 2',
    $$values
        ('appointment_made_mismatch', 4::bigint), ('inconsistent_customer_link', 7),
        ('inconsistent_link_status', 8), ('missing_appointment', 3), ('missing_appointment', 9),
        ('missing_direction', 1), ('orphaned_appointment', 5), ('orphaned_appointment', 6),
        ('session_outcome_mismatch', 2), ('tenant_mismatch', 10)$$, 'this is wrong'
);
select is(
    (select sum(examined)::integer from guard.reconcile(false) where repaired + queued = 0), 10,
    'rules that only observe are looked at, and nothing is done'
);

update guard.rules set mode = 'correct' where enforceable;
create temporary table before as select to_jsonb(c) as row_before from public.calls as c;
create temporary table planned as select * from guard.reconcile();
select results_eq(
    'select rule, examined, repaired, queued from planned where examined > 0 order by 1',
    $$values
        ('appointment_made_mismatch', 1, 1, 0), ('inconsistent_customer_link', 1, 1, 0),
        ('inconsistent_link_status', 1, 1, 0), ('missing_appointment', 2, 2, 1),
        ('missing_direction', 1, 1, 0), ('orphaned_appointment', 2, 1, 1),
        ('session_outcome_mismatch', 1, 1, 0), ('tenant_mismatch', 1, 0, 1)$$, 'a dry run says what would be done'
);
select set_eq('select to_jsonb(c) from public.calls as c', 'select row_before from before', 'and changes nothing');
select is_empty('select from guard.manual_review_queue', 'nor queues');

set local role guard_operator;
select is((select sum(repaired)::integer from guard.reconcile(false)), 9, 'the repairs');
reset role;
select results_eq(
    'select entity_id from guard.missing_direction
    union all select entity_id from guard.session_outcome_mismatch
    union all select entity_id from guard.appointment_made_mismatch
    union all select entity_id from guard.missing_appointment
    union all select entity_id from guard.inconsistent_link_status
    union all select entity_id from guard.inconsistent_customer_link',
    array[]::bigint[], 'what can be repaired is sound'
);
select results_eq(
    'select entity_id from guard.orphaned_appointment union all select entity_id from guard.tenant_mismatch',
    array[6, 10]::bigint[], 'what cannot still stands'
);
select is((select direction from public.calls where id = 1), 'inbound', 'a direction');
select results_eq(
    'select session_outcome, appointment_made from public.calls where id = 4',
    $$values ('appointment_booked', true)$$, 'an appointment exists: booked'
);
select results_eq(
    'select id, call_id from public.appointments where call_id in (5, 9) order by id',
    'values (5::bigint, 5::bigint), (9, 9)', 'an orphan and the evidence of a phantom are linked'
);
select results_eq(
    'select session_outcome, appointment_made, appointment_link_status from public.calls where id in (5, 9)',
    $$values ('appointment_booked', true, 'linked'), ('appointment_booked', true, 'linked')$$, 'and their calls say so'
);
select results_eq(
    $$select id, session_outcome, appointment_made, booking_failed, requires_manual_processing
    from public.calls where id in (2, 3) order by id$$,
    $$values
        (2::bigint, 'creation_failed', false, true, true), (3, 'creation_failed', false, true, true)$$,
    'phantoms without evidence are taken back, also those that a repair brought to light'
);
select results_eq(
    $$select call_id, subject, reason, priority from guard.manual_review_queue order by reason, call_id$$,
    $$values
        (2::bigint, '', 'missing_appointment', 1), (3, '', 'missing_appointment', 1),
        (null, 'appointment 6', 'orphaned_appointment', 5), (10, 'appointment 10', 'tenant_mismatch', 5)$$,
    'a person decides the rest'
);
select is_empty(
    $$select from guard.data_consistency_alerts where metadata ->> 'by' = 'repair' and metadata -> 'changes' is null$$,
    'every repair has its values before'
);
select results_eq(
    $$select m.before, m.after from guard.data_consistency_alerts as a
    cross join lateral jsonb_to_recordset(a.metadata -> 'changes') as m ("column" text, before text, after text)
    where a.alert_type = 'appointment_made_mismatch' and m."column" = 'session_outcome'$$,
    $$values ('abandoned', 'appointment_booked')$$, 'such as this one'
);
select is((select sum(queued)::integer from guard.reconcile(false)), 0, 'what is queued is not queued again');
select is((select sum(queued)::integer from guard.reconcile(false)), 0, 'however often');
select guard.resolve_review(q.id, 'it is right so') from guard.manual_review_queue as q;
select is(
    (select sum(queued)::integer from guard.reconcile(false)), 0, 'nor after a person has answered'
);
update public.appointments set calcom_v2_booking_id = 'bk_7' where id = 6;
select is((select sum(queued)::integer from guard.reconcile(false)), 1, 'but about another defect of the row');
select throws_ok($$select guard.reconcile(false, 'nonsense')$$, 'ZG010', null, 'a rule that there is not');
select throws_ok($$select guard.reconcile(false, null, 0)$$, 'ZG405', null, 'a batch of nothing');
select throws_ok($$select guard.reconcile(false, null, null)$$, 'ZG405', null, 'nor of null');
select results_eq(
    $$select r.rounds > 0 and r.last_id = 0 from guard.reconcile_progress as r where r.rule = 'missing_direction'$$,
    array[true], 'what has come to its end begins anew'
);

select * from finish();
rollback;
