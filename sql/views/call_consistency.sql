-- provides: view guard_bi.call_consistency
-- provides: view guard_bi.call_consistency_daily
--
-- Every call, and whether it is consistent as detection saw it last: a call is joined with what stands against it, and
-- no rule is asked. So the cost is that of reading the calls, and a count needs no join at all. Where a rule has more
-- standing incidents than incident_sample_cap, the calls beyond it look consistent: what the rules say right now is
-- guard.kpis, or guard audit.

create or replace view guard_bi.call_consistency
with (security_invoker = true)
as
select
    c.id::bigint as call_id,
    c.company_id::bigint as company_id,
    guard.instant(c.created_at, z.value) as created_at,
    guard.local_date(c.created_at, z.value) as created_date,
    c.direction::text as direction,
    c.status::text as status,
    c.customer_id::bigint as customer_id,
    c.customer_link_status::text as customer_link_status,
    c.session_outcome::text as session_outcome,
    c.appointment_made,
    c.appointment_link_status::text as appointment_link_status,
    c.booking_confirmed,
    c.booking_failed,
    c.requires_manual_processing,
    d.entity_id is null as is_consistent,
    coalesce(d.open_defects, 0) as open_defects,
    d.rule,
    d.severity,
    coalesce(d.is_legacy, false) as is_legacy
from public.calls as c
cross join guard.settings as z
left join (
    select
        s.entity_id,
        count(distinct s.rule) as open_defects,
        string_agg(distinct s.rule, ', ' order by s.rule) as rule,
        case when bool_or(s.severity = 'critical') then 'critical' else 'warning' end as severity,
        bool_or(s.is_legacy) as is_legacy
    from (
        select i.entity_id, i.rule, i.severity, false as is_legacy
        from guard.incidents as i
        where i.status <> 'resolved' and i.entity_type = 'call' and i.severity <> 'info' and not i.is_false
        union all
        select b.entity_id, b.rule, r.severity, true as is_legacy
        from guard.baseline as b
        inner join guard.rules as r on b.rule = r.rule
        where
            b.cleared_at is null and b.entity_type = 'call' and r.severity <> 'info'
            and not exists (
                select from guard.incidents as f
                where f.rule = b.rule and f.entity_type = 'call' and f.entity_id = b.entity_id and f.is_false
            )
    ) as s
    group by s.entity_id
) as d on c.id = d.entity_id
where z.name = 'app_timezone';

comment on view guard_bi.call_consistency is
'Every call, and whether an incident or a legacy defect stands against it, as detection saw it last.';
comment on column guard_bi.call_consistency.call_id is 'The call.';
comment on column guard_bi.call_consistency.company_id is 'The company that it belongs to.';
comment on column guard_bi.call_consistency.created_at is 'When the call was created.';
comment on column guard_bi.call_consistency.created_date is 'The day of created_at, in settings.app_timezone.';
comment on column guard_bi.call_consistency.direction is 'inbound or outbound.';
comment on column guard_bi.call_consistency.status is 'The status of the call.';
comment on column guard_bi.call_consistency.customer_id is 'The customer.';
comment on column guard_bi.call_consistency.customer_link_status is 'Whether the customer is linked.';
comment on column guard_bi.call_consistency.session_outcome is 'What came of the call.';
comment on column guard_bi.call_consistency.appointment_made is 'Whether the call claims an appointment.';
comment on column guard_bi.call_consistency.appointment_link_status is 'Whether the appointment is linked.';
comment on column guard_bi.call_consistency.booking_confirmed is 'Whether the calendar confirmed the booking.';
comment on column guard_bi.call_consistency.booking_failed is 'Whether the booking failed.';
comment on column guard_bi.call_consistency.requires_manual_processing is 'Whether a person must look at it.';
comment on column guard_bi.call_consistency.is_consistent is 'Whether no critical or warning rule stands against it.';
comment on column guard_bi.call_consistency.open_defects is 'How many rules stand against it.';
comment on column guard_bi.call_consistency.rule is
'These rules, in alphabetical order and separated by commas; null if there are none.';
comment on column guard_bi.call_consistency.severity is
'The gravest of their severities: critical or warning; null if there are none.';
comment on column guard_bi.call_consistency.is_legacy is 'Whether it was wrong when the baseline was taken.';

grant select on guard_bi.call_consistency to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.call_consistency_daily
with (security_invoker = true)
as
select
    t.report_date,
    t.company_id,
    t.calls,
    t.consistent_calls,
    round(100.0 * t.consistent_calls / nullif(t.calls, 0), 3) as consistency_rate_pct,
    t.appointments,
    t.found as defects_found,
    t.corrected as defects_corrected
from guard.daily_company_totals as t;

comment on view guard_bi.call_consistency_daily is 'What the daily report counted, one row per day and company.';
comment on column guard_bi.call_consistency_daily.report_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.call_consistency_daily.company_id is 'The company that it belongs to.';
comment on column guard_bi.call_consistency_daily.calls is 'Calls created on that day.';
comment on column guard_bi.call_consistency_daily.consistent_calls is
'Of these, the calls that broke no critical or warning rule when the report was made.';
comment on column guard_bi.call_consistency_daily.consistency_rate_pct is 'Their share in percent; null without calls.';
comment on column guard_bi.call_consistency_daily.appointments is 'Appointments created on that day.';
comment on column guard_bi.call_consistency_daily.defects_found is
'Defects found on that day: one per critical or warning rule and row.';
comment on column guard_bi.call_consistency_daily.defects_corrected is
'Of these, the defects that guard corrected by itself.';

grant select on guard_bi.call_consistency_daily to guard_operator, guard_reader, guard_monitor;
