-- provides: view guard.orphaned_appointment
-- provides: rule orphaned_appointment
--
-- An appointment that came from a call, and the call is not known.
-- In two parts: the first is found by an index at any age; the second needs a call that was deleted without a foreign key.

create or replace view guard.orphaned_appointment
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'appointment' as entity_type,
    a.id::bigint as entity_id,
    a.company_id::bigint as company_id,
    greatest(guard.instant(a.created_at), guard.instant(a.updated_at)) as occurred_at,
    jsonb_build_object('call_id', a.call_id, 'booking_id', a.calcom_v2_booking_id) as details,
    a.id as row_id,
    greatest(a.created_at, 'infinity') as row_created_at
from public.appointments as a
inner join guard.rules as r on r.rule = 'orphaned_appointment'
where a.source = 'retell_webhook' and a.call_id is null
union all
select
    r.rule,
    r.severity,
    'appointment' as entity_type,
    a.id::bigint as entity_id,
    a.company_id::bigint as company_id,
    greatest(guard.instant(a.created_at), guard.instant(a.updated_at)) as occurred_at,
    jsonb_build_object('call_id', a.call_id, 'booking_id', a.calcom_v2_booking_id) as details,
    a.id as row_id,
    a.created_at as row_created_at
from public.appointments as a
inner join guard.rules as r on r.rule = 'orphaned_appointment'
where
    a.source = 'retell_webhook'
    and a.call_id is not null
    and not exists (select from public.calls as c where c.id = a.call_id);

select guard.register_rule(
    p_rule => 'orphaned_appointment',
    p_severity => 'warning',
    p_entity_type => 'appointment',
    p_errcode => 'ZG105',
    p_description => 'the appointment came from a call, but call_id names none',
    p_repair => 'linked to the one call of its company that knows its booking id, else a person is asked',
    p_runbook => 'Write call_id with the appointment, and delete a call only after its appointments.',
    p_repairable => true,
    p_repair_with => 'guard.rewrite_appointments',
    p_constraint_kind => 'check',
    p_constraint_definition =>
    $$check (
        source is distinct from 'retell_webhook'
        or call_id is not null
        or (guard_corrections @> '[{"rule": "orphaned_appointment"}]') is true
    )$$,
    p_probe => $$select guard.probe_insert('appointments', jsonb_build_array(jsonb_build_object(
        'id', $2, 'company_id', $3, 'call_id', null, 'source', 'retell_webhook', 'calcom_v2_booking_id', 'guard-probe',
        'starts_at', '2000-01-01 09:00', 'ends_at', '2000-01-01 09:30'
    )))$$
);
