-- provides: view guard.tenant_mismatch
-- provides: rule tenant_mismatch
--
-- An appointment and its call belong to different companies: one company sees another's booking.

create or replace view guard.tenant_mismatch
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'appointment' as entity_type,
    a.id::bigint as entity_id,
    a.company_id::bigint as company_id,
    greatest(guard.instant(a.created_at), guard.instant(a.updated_at)) as occurred_at,
    jsonb_build_object('call_id', c.id, 'call_company_id', c.company_id) as details,
    a.id as row_id,
    a.created_at as row_created_at
from public.appointments as a
inner join public.calls as c on a.call_id = c.id
inner join guard.rules as r on r.rule = 'tenant_mismatch'
where a.company_id is distinct from c.company_id;

select guard.register_rule(
    p_rule => 'tenant_mismatch',
    p_severity => 'critical',
    p_entity_type => 'appointment',
    p_errcode => 'ZG109',
    p_description => 'the appointment and its call belong to different companies',
    p_repair => 'none: a person decides which company is right',
    p_runbook => 'Write an appointment only with the company of its call.',
    p_repairable => false,
    p_probe => $$select guard.probe_insert('appointments', jsonb_build_array(jsonb_build_object(
        'id', $2, 'company_id', $5, 'call_id', $1, 'calcom_v2_booking_id', 'guard-probe',
        'starts_at', '2000-01-01 09:00', 'ends_at', '2000-01-01 09:30'
    )))$$
);
