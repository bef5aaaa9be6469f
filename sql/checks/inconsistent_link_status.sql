-- provides: view guard.inconsistent_link_status
-- provides: rule inconsistent_link_status
--
-- The link status says linked and no appointment exists, or an appointment exists and the call does not say so.
-- A phantom booking is linked to nothing too; it is reported once, by missing_appointment.
-- In two parts: the first is found by an index at any age, and its subquery keeps the planner from joining few suspects
-- with all appointments; the second begins with the latest appointment of each call.

create or replace view guard.inconsistent_link_status
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object(
        'appointment_link_status', c.appointment_link_status, 'appointment_made', c.appointment_made
    ) as details,
    c.id as row_id,
    greatest(c.created_at, 'infinity') as row_created_at
from public.calls as c
inner join guard.rules as r on r.rule = 'inconsistent_link_status'
where
    c.appointment_link_status = 'linked'
    and c.appointment_made is not true
    and (select true from public.appointments as a where a.call_id = c.id limit 1) is null
union all
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object(
        'appointment_link_status', c.appointment_link_status, 'appointment_made', c.appointment_made
    ) as details,
    c.id as row_id,
    latest.created_at as row_created_at
from public.appointments as latest
inner join public.calls as c on latest.call_id = c.id
inner join guard.rules as r on r.rule = 'inconsistent_link_status'
where
    (c.appointment_link_status is distinct from 'linked' or c.appointment_made is not true)
    and not exists (select from public.appointments as a where a.call_id = c.id and a.id > latest.id);

select guard.register_rule(
    p_rule => 'inconsistent_link_status',
    p_severity => 'warning',
    p_entity_type => 'call',
    p_errcode => 'ZG106',
    p_description => 'appointment_link_status does not say whether the call has an appointment',
    p_repair => 'link status and flags follow the appointment row',
    p_runbook => 'Leave appointment_link_status to guard: it follows the appointments.',
    p_repairable => true,
    p_repair_with => 'guard.repair_inconsistent_link_status',
    p_constraint_kind => 'check',
    p_constraint_definition =>
    $$check (
        appointment_link_status is distinct from 'linked'
        or appointment_made is true
        or (guard_corrections @> '[{"rule": "inconsistent_link_status"}]') is true
    )$$,
    p_probe => $$update public.calls set appointment_link_status = 'linked' where id = $1$$
);
