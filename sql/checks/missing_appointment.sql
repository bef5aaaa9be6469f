-- provides: view guard.missing_appointment
-- provides: rule missing_appointment
--
-- The phantom booking: the call says that an appointment was made, and none exists once the grace has passed.
-- A constraint cannot say this of two tables: at enforce a deferred trigger checks it at COMMIT.
-- In two parts: where the row gives itself away an index finds it at any age; where it says linked, age bounds the
-- search. The subquery of the first keeps the planner from joining few suspects with all appointments.

create or replace view guard.missing_appointment
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
        'session_outcome', c.session_outcome,
        'appointment_link_status', c.appointment_link_status,
        'booking_id', c.booking_id
    ) as details,
    c.id as row_id,
    greatest(c.created_at, 'infinity') as row_created_at
from public.calls as c
inner join guard.rules as r on r.rule = 'missing_appointment'
where
    c.appointment_made
    and c.appointment_link_status is distinct from 'linked'
    and (select true from public.appointments as a where a.call_id = c.id limit 1) is null
    and coalesce(greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) < now() - r.grace, true)
union all
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object(
        'session_outcome', c.session_outcome,
        'appointment_link_status', c.appointment_link_status,
        'booking_id', c.booking_id
    ) as details,
    c.id as row_id,
    c.created_at as row_created_at
from public.calls as c
inner join guard.rules as r on r.rule = 'missing_appointment'
where
    c.appointment_made
    and c.appointment_link_status = 'linked'
    and not exists (select from public.appointments as a where a.call_id = c.id)
    and coalesce(greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) < now() - r.grace, true);

select guard.register_rule(
    p_rule => 'missing_appointment',
    p_severity => 'critical',
    p_entity_type => 'call',
    p_errcode => 'ZG103',
    p_description => 'appointment_made is true, but the call has no appointment',
    p_repair => 'linked if the evidence is there, else the flags are rolled back and a person is asked',
    p_runbook => 'Write the appointment in the transaction that claims it.',
    p_repairable => true,
    p_repair_with => 'guard.repair_missing_appointment',
    p_grace => '3 seconds',
    p_probe => $$update public.calls
    set appointment_made = true, session_outcome = 'appointment_booked', updated_at = created_at where id = $1$$
);
