-- provides: view guard.duplicate_booking
-- provides: rule duplicate_booking
--
-- One remote booking on several appointments; every one beyond the first counts.

create or replace view guard.duplicate_booking
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'appointment' as entity_type,
    a.id::bigint as entity_id,
    a.company_id::bigint as company_id,
    greatest(guard.instant(a.created_at), guard.instant(a.updated_at)) as occurred_at,
    jsonb_build_object('booking_id', a.calcom_v2_booking_id) as details,
    a.id as row_id,
    a.created_at as row_created_at
from public.appointments as a
inner join guard.rules as r on r.rule = 'duplicate_booking'
where
    exists (
        select from public.appointments as earlier
        where earlier.calcom_v2_booking_id = a.calcom_v2_booking_id and earlier.id < a.id
    );

select guard.register_rule(
    p_rule => 'duplicate_booking',
    p_severity => 'critical',
    p_entity_type => 'appointment',
    p_errcode => 'ZG110',
    p_description => 'another appointment already carries this remote booking id',
    p_repair => 'none: a person decides which appointment is real',
    p_runbook => 'Look the booking id up before writing an appointment for it.',
    p_repairable => false,
    p_constraint_kind => 'unique',
    p_constraint_definition => '(calcom_v2_booking_id) where calcom_v2_booking_id is not null',
    p_probe => $$select guard.probe_insert('appointments', jsonb_agg(jsonb_build_object(
        'id', $2 - i, 'company_id', $3, 'call_id', $1, 'calcom_v2_booking_id', 'guard-probe',
        'starts_at', make_timestamp(2000, 1, 1, 9 - i, 0, 0), 'ends_at', make_timestamp(2000, 1, 1, 9 - i, 30, 0)
    )))
    from generate_series(0, 1) as i$$
);
