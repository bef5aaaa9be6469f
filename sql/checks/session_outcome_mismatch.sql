-- provides: view guard.session_outcome_mismatch
-- provides: rule session_outcome_mismatch
--
-- The outcome says that an appointment was booked, the flag does not.

create or replace view guard.session_outcome_mismatch
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
inner join guard.rules as r on r.rule = 'session_outcome_mismatch'
where c.session_outcome = 'appointment_booked' and c.appointment_made is not true;

select guard.register_rule(
    p_rule => 'session_outcome_mismatch',
    p_severity => 'critical',
    p_entity_type => 'call',
    p_errcode => 'ZG101',
    p_description => 'session_outcome is appointment_booked, but appointment_made is not true',
    p_repair => 'both say booked, and the call is checked again after the grace',
    p_runbook => 'Write session_outcome and appointment_made in one statement, and so that they agree.',
    p_repairable => true,
    p_repair_with => 'guard.rewrite_calls',
    p_constraint_kind => 'check',
    p_constraint_definition =>
    $$check (
        session_outcome is distinct from 'appointment_booked'
        or appointment_made is true
        or (guard_corrections @> '[{"rule": "session_outcome_mismatch"}]') is true
    )$$,
    p_probe =>
    $$update public.calls set session_outcome = 'appointment_booked', appointment_made = false where id = $1$$
);
