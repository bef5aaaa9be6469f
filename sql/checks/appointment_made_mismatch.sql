-- provides: view guard.appointment_made_mismatch
-- provides: rule appointment_made_mismatch
--
-- The flag says that an appointment was made, the outcome says something else.

create or replace view guard.appointment_made_mismatch
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object('session_outcome', c.session_outcome, 'appointment_made', c.appointment_made) as details,
    c.id as row_id
from public.calls as c
inner join guard.rules as r on r.rule = 'appointment_made_mismatch'
where c.appointment_made and c.session_outcome <> 'appointment_booked';

select guard.register_rule(
    p_rule => 'appointment_made_mismatch',
    p_severity => 'critical',
    p_entity_type => 'call',
    p_errcode => 'ZG102',
    p_description => 'appointment_made is true, but session_outcome is not appointment_booked',
    p_repair => 'both say booked, and the call is checked again after the grace',
    p_runbook => 'Write session_outcome and appointment_made in one statement, and so that they agree.',
    p_repairable => true,
    p_repair_with => 'guard.rewrite_calls',
    p_constraint_kind => 'check',
    p_constraint_definition =>
    $$check (
        appointment_made is not true
        or session_outcome is null
        or session_outcome = 'appointment_booked'
        or (guard_corrections @> '[{"rule": "appointment_made_mismatch"}]') is true
    )$$,
    p_probe => $$update public.calls set session_outcome = 'abandoned', appointment_made = true where id = $1$$
);
