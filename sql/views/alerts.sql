-- provides: view guard_bi.alerts
-- provides: view guard_bi.alerts_daily
-- provides: view guard_bi.corrections
-- provides: view guard_bi.corrections_daily
--
-- What was found and what was corrected. An alert is one finding; a correction is one value that was changed.

create or replace view guard_bi.alerts
with (security_invoker = true)
as
select
    a.id as alert_id,
    a.alert_type as rule,
    a.severity,
    case when a.auto_corrected or a.corrected_at is not null then 'corrected' else 'recorded' end as status,
    a.entity_type,
    a.entity_id,
    a.company_id,
    a.description,
    a.metadata ->> 'mode' as mode,
    a.detected_at,
    (a.detected_at at time zone z.value)::date as detected_date,
    a.auto_corrected,
    a.corrected_at,
    (a.corrected_at at time zone z.value)::date as corrected_date
from guard.data_consistency_alerts as a
cross join guard.settings as z
where z.name = 'app_timezone';

comment on view guard_bi.alerts is 'Every alert: what was found, when, and whether it was corrected.';
comment on column guard_bi.alerts.alert_id is 'The alert.';
comment on column guard_bi.alerts.rule is 'The rule that was broken; or booking_rolled_back, failure_cleared.';
comment on column guard_bi.alerts.severity is 'info, warning or critical.';
comment on column guard_bi.alerts.status is 'corrected or recorded.';
comment on column guard_bi.alerts.entity_type is 'call or appointment.';
comment on column guard_bi.alerts.entity_id is 'The id of the call or appointment.';
comment on column guard_bi.alerts.company_id is 'The company that it belongs to.';
comment on column guard_bi.alerts.description is 'What was wrong.';
comment on column guard_bi.alerts.mode is 'The mode that the rule stood at; null if detection found it.';
comment on column guard_bi.alerts.detected_at is 'When it was detected.';
comment on column guard_bi.alerts.detected_date is 'The day of detected_at, in settings.app_timezone.';
comment on column guard_bi.alerts.auto_corrected is 'Whether guard corrected it by itself.';
comment on column guard_bi.alerts.corrected_at is 'When it was corrected; null if it was not.';
comment on column guard_bi.alerts.corrected_date is 'The day of corrected_at, in settings.app_timezone.';

grant select on guard_bi.alerts to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.alerts_daily
with (security_invoker = true)
as
select
    a.detected_date,
    a.company_id,
    a.rule,
    a.severity,
    a.status,
    count(*) as alerts
from guard_bi.alerts as a
group by a.detected_date, a.company_id, a.rule, a.severity, a.status;

comment on view guard_bi.alerts_daily is 'Alerts, one row per day, company, rule, severity and status.';
comment on column guard_bi.alerts_daily.detected_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.alerts_daily.company_id is 'The company that it belongs to.';
comment on column guard_bi.alerts_daily.rule is 'The rule that was broken; or booking_rolled_back, failure_cleared.';
comment on column guard_bi.alerts_daily.severity is 'info, warning or critical.';
comment on column guard_bi.alerts_daily.status is 'corrected or recorded.';
comment on column guard_bi.alerts_daily.alerts is 'How many alerts.';

grant select on guard_bi.alerts_daily to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.corrections
with (security_invoker = true)
as
select
    a.id as alert_id,
    a.alert_type as rule,
    a.severity,
    a.entity_type,
    a.entity_id,
    a.company_id,
    v."column" as column_name,
    case when v."column" !~ 'number|phone' then guard.mask_value(v.before) #>> '{}' end as value_before,
    case when v."column" !~ 'number|phone' then guard.mask_value(v.after) #>> '{}' end as value_after,
    a.corrected_at,
    (a.corrected_at at time zone z.value)::date as corrected_date
from guard.data_consistency_alerts as a
cross join guard.settings as z
cross join
    lateral jsonb_to_recordset(
        case when jsonb_typeof(a.metadata -> 'changes') = 'array' then a.metadata -> 'changes' end
    ) as v ("column" text, before jsonb, after jsonb)
where z.name = 'app_timezone' and a.corrected_at is not null;

comment on view guard_bi.corrections is 'Every value that guard corrected: the column, what it was and what it became.';
comment on column guard_bi.corrections.alert_id is 'The alert that records it.';
comment on column guard_bi.corrections.rule is 'The rule that was broken; or booking_rolled_back, failure_cleared.';
comment on column guard_bi.corrections.severity is 'info, warning or critical.';
comment on column guard_bi.corrections.entity_type is 'call or appointment.';
comment on column guard_bi.corrections.entity_id is 'The id of the call or appointment.';
comment on column guard_bi.corrections.company_id is 'The company that it belongs to.';
comment on column guard_bi.corrections.column_name is 'The column that was corrected.';
comment on column guard_bi.corrections.value_before is
'What it was, phone numbers masked; null too where the column holds them.';
comment on column guard_bi.corrections.value_after is
'What it became, phone numbers masked; null too where the column holds them.';
comment on column guard_bi.corrections.corrected_at is 'When it was corrected.';
comment on column guard_bi.corrections.corrected_date is 'The day of corrected_at, in settings.app_timezone.';

grant select on guard_bi.corrections to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.corrections_daily
with (security_invoker = true)
as
select
    c.corrected_date,
    c.company_id,
    c.rule,
    c.severity,
    c.column_name,
    count(*) as corrections
from guard_bi.corrections as c
group by c.corrected_date, c.company_id, c.rule, c.severity, c.column_name;

comment on view guard_bi.corrections_daily is 'Corrected values, one row per day, company, rule, severity and column.';
comment on column guard_bi.corrections_daily.corrected_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.corrections_daily.company_id is 'The company that it belongs to.';
comment on column guard_bi.corrections_daily.rule is
'The rule that was broken; or booking_rolled_back, failure_cleared.';
comment on column guard_bi.corrections_daily.severity is 'info, warning or critical.';
comment on column guard_bi.corrections_daily.column_name is 'The column that was corrected.';
comment on column guard_bi.corrections_daily.corrections is 'How many values were corrected.';

grant select on guard_bi.corrections_daily to guard_operator, guard_reader, guard_monitor;
