-- provides: view guard.overlapping_appointment
-- provides: rule overlapping_appointment
--
-- One staff member, two active appointments at one time; the one that was made later counts. A subquery, and no EXISTS,
-- which would be joined by staff member alone: each of a year's appointments with all others.

create or replace view guard.overlapping_appointment
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'appointment' as entity_type,
    a.id::bigint as entity_id,
    a.company_id::bigint as company_id,
    greatest(guard.instant(a.created_at), guard.instant(a.updated_at)) as occurred_at,
    jsonb_build_object('staff_id', a.staff_id, 'starts_at', a.starts_at, 'ends_at', a.ends_at) as details,
    a.id as row_id,
    a.created_at as row_created_at
from public.appointments as a
inner join guard.rules as r on r.rule = 'overlapping_appointment'
where
    a.status::text <> all('{cancelled,rejected,rescheduled,no_show}')
    and (
        select true
        from public.appointments as earlier
        where
            earlier.staff_id = a.staff_id
            and guard.period(earlier.starts_at, earlier.ends_at) && guard.period(a.starts_at, a.ends_at)
            and earlier.status::text <> all('{cancelled,rejected,rescheduled,no_show}')
            and earlier.id < a.id
        limit 1
    );

select guard.register_rule(
    p_rule => 'overlapping_appointment',
    p_severity => 'critical',
    p_entity_type => 'appointment',
    p_errcode => 'ZG111',
    p_description => 'the staff member already has an active appointment at this time',
    p_repair => 'none: a person moves or cancels one of the two',
    p_runbook => 'Take only a free slot of the staff member.',
    p_repairable => false,
    p_constraint_kind => 'exclude',
    p_constraint_definition =>
    $$exclude using gist (staff_id with =, guard.period(starts_at, ends_at) with &&)
    where (status::text <> all('{cancelled,rejected,rescheduled,no_show}'))$$,
    p_probe => $$select guard.probe_insert('appointments', jsonb_agg(jsonb_build_object(
        'id', $2 - i, 'company_id', $3, 'call_id', $1, 'staff_id', $6,
        'calcom_v2_booking_id', 'guard-probe-' || i, 'starts_at', '2000-01-01 09:00', 'ends_at', '2000-01-01 09:30'
    )))
    from generate_series(0, 1) as i$$
);
