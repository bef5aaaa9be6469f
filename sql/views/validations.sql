-- provides: view guard_bi.validations
-- provides: view guard_bi.validations_daily
--
-- How long the validation of a booking takes, and what it finds.

create or replace view guard_bi.validations
with (security_invoker = true)
as
select
    m.id as validation_id,
    m.call_id,
    c.company_id::bigint as company_id,
    m.appointment_id,
    case when m.success then 'passed' else 'failed' end as status,
    m.reason,
    m.duration_ms,
    m.created_at as validated_at,
    (m.created_at at time zone z.value)::date as validated_date
from guard.validation_metrics as m
cross join guard.settings as z
left join public.calls as c on m.call_id = c.id
where z.name = 'app_timezone';

comment on view guard_bi.validations is 'Every validation of a booking.';
comment on column guard_bi.validations.validation_id is 'The validation.';
comment on column guard_bi.validations.call_id is 'The call.';
comment on column guard_bi.validations.company_id is 'The company that it belongs to.';
comment on column guard_bi.validations.appointment_id is 'The appointment; null if none was found.';
comment on column guard_bi.validations.status is 'passed or failed.';
comment on column guard_bi.validations.reason is 'The first check that failed; null if none did.';
comment on column guard_bi.validations.duration_ms is 'How long it took, in milliseconds.';
comment on column guard_bi.validations.validated_at is 'When it was done.';
comment on column guard_bi.validations.validated_date is 'The day of validated_at, in settings.app_timezone.';

grant select on guard_bi.validations to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.validations_daily
with (security_invoker = true)
as
select
    v.validated_date,
    v.company_id,
    count(*) as validations,
    count(*) filter (where v.status = 'failed') as failed,
    round(avg(v.duration_ms), 3) as mean_ms,
    round((percentile_cont(0.95) within group (order by v.duration_ms))::numeric, 3) as p95_ms,
    max(v.duration_ms) as max_ms
from guard_bi.validations as v
group by v.validated_date, v.company_id;

comment on view guard_bi.validations_daily is 'Validations, one row per day and company.';
comment on column guard_bi.validations_daily.validated_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.validations_daily.company_id is 'The company that it belongs to.';
comment on column guard_bi.validations_daily.validations is 'How many validations.';
comment on column guard_bi.validations_daily.failed is 'Of these, how many failed.';
comment on column guard_bi.validations_daily.mean_ms is 'How long they took on average, in milliseconds.';
comment on column guard_bi.validations_daily.p95_ms is 'What 95 of 100 took at most, in milliseconds.';
comment on column guard_bi.validations_daily.max_ms is 'How long the longest took, in milliseconds.';

grant select on guard_bi.validations_daily to guard_operator, guard_reader, guard_monitor;
