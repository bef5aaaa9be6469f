-- provides: view guard.recent_creation_failure
-- provides: rule recent_creation_failure
--
-- A booking failed within the detection window. It is a fact, not a contradiction: nothing is repaired or refused.

create or replace view guard.recent_creation_failure
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object('session_outcome', c.session_outcome) as details,
    c.id as row_id
from public.calls as c
inner join guard.rules as r on r.rule = 'recent_creation_failure'
where
    c.session_outcome::text = any('{creation_failed,booking_failed}')
    -- a phantom booking that guard took back is reported as what it was
    and c.booking_failure_reason is distinct from 'missing_appointment'
    and greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) >= now() - r.detection_window
    -- what an index can look for: a booking is tried within a day of its call, whatever the zone of its timestamps
    and c.created_at >= now() - r.detection_window - interval '2 days';

select guard.register_rule(
    p_rule => 'recent_creation_failure',
    p_severity => 'info',
    p_entity_type => 'call',
    p_errcode => 'ZG108',
    p_description => 'a booking failed within the detection window',
    p_repair => 'none: it is a fact',
    p_runbook => 'Look at the calendar''s state and at the review queue.',
    p_repairable => false,
    p_enforceable => false,
    p_detection_window => '1 hour',
    p_probe =>
    $$update public.calls
    set session_outcome = 'creation_failed', created_at = now(), updated_at = now() where id = $1$$
);
