-- provides: view guard_bi.incidents
-- provides: view guard_bi.incidents_daily
-- provides: view guard_bi.legacy_defects
--
-- Incidents: one per defect. And what was wrong when guard came, counted down as it is cleared.

create or replace view guard_bi.incidents
with (security_invoker = true)
as
select
    i.id as incident_id,
    i.rule,
    i.severity,
    i.status,
    i.entity_type,
    i.entity_id,
    i.company_id,
    i.description,
    i.occurrences,
    i.occurred_at,
    (i.occurred_at at time zone z.value)::date as occurred_date,
    i.first_seen_at,
    (i.first_seen_at at time zone z.value)::date as first_seen_date,
    i.last_seen_at,
    (i.last_seen_at at time zone z.value)::date as last_seen_date,
    i.acknowledged_at,
    (i.acknowledged_at at time zone z.value)::date as acknowledged_date,
    i.resolved_at,
    (i.resolved_at at time zone z.value)::date as resolved_date,
    i.assignee,
    i.resolved_by,
    i.is_false,
    case when i.occurred_at is not null then greatest(extract(epoch from i.first_seen_at - i.occurred_at), 0) end
        as detection_seconds,
    case when i.resolved_at is not null then greatest(extract(epoch from i.resolved_at - i.first_seen_at), 0) / 60 end
        as resolution_minutes
from guard.incidents as i
cross join guard.settings as z
where z.name = 'app_timezone';

comment on view guard_bi.incidents is 'Every incident: what is or was wrong, since when, and who looks after it.';
comment on column guard_bi.incidents.incident_id is 'The incident.';
comment on column guard_bi.incidents.rule is 'The rule that is broken, or rule_failed, job_failed, job_missed.';
comment on column guard_bi.incidents.severity is 'info, warning or critical.';
comment on column guard_bi.incidents.status is 'open, acknowledged, snoozed or resolved.';
comment on column guard_bi.incidents.entity_type is 'call, appointment, rule or job.';
comment on column guard_bi.incidents.entity_id is 'The id of the call or appointment; null for a rule or job.';
comment on column guard_bi.incidents.company_id is 'The company that it belongs to.';
comment on column guard_bi.incidents.description is 'What is wrong.';
comment on column guard_bi.incidents.occurrences is 'How often it came to be.';
comment on column guard_bi.incidents.occurred_at is 'When the row was last written, as its rule saw it.';
comment on column guard_bi.incidents.occurred_date is 'The day of occurred_at, in settings.app_timezone.';
comment on column guard_bi.incidents.first_seen_at is 'When it was found first, or found again after it was resolved.';
comment on column guard_bi.incidents.first_seen_date is 'The day of first_seen_at, in settings.app_timezone.';
comment on column guard_bi.incidents.last_seen_at is 'When it was seen last.';
comment on column guard_bi.incidents.last_seen_date is 'The day of last_seen_at, in settings.app_timezone.';
comment on column guard_bi.incidents.acknowledged_at is 'When a person reacted first.';
comment on column guard_bi.incidents.acknowledged_date is 'The day of acknowledged_at, in settings.app_timezone.';
comment on column guard_bi.incidents.resolved_at is 'When it was resolved.';
comment on column guard_bi.incidents.resolved_date is 'The day of resolved_at, in settings.app_timezone.';
comment on column guard_bi.incidents.assignee is 'Who looks after it.';
comment on column guard_bi.incidents.resolved_by is
'Who resolved it; guard: the defect was gone; rule off: its rule was switched off.';
comment on column guard_bi.incidents.is_false is 'Whether a person found that nothing was wrong.';
comment on column guard_bi.incidents.detection_seconds is
'From the write to the finding, in seconds; null where the write is not known.';
comment on column guard_bi.incidents.resolution_minutes is
'From the finding to the end, in minutes; null while it stands.';

grant select on guard_bi.incidents to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.incidents_daily
with (security_invoker = true)
as
select
    i.first_seen_date,
    i.company_id,
    i.rule,
    i.severity,
    i.status,
    count(*) as incidents,
    count(*) filter (where i.is_false) as false_incidents,
    round(avg(i.detection_seconds), 3) as mean_detection_seconds,
    max(i.detection_seconds) as max_detection_seconds
from guard_bi.incidents as i
group by i.first_seen_date, i.company_id, i.rule, i.severity, i.status;

comment on view guard_bi.incidents_daily is
'Incidents by the day of their finding, one row per day, company, rule, severity and status.';
comment on column guard_bi.incidents_daily.first_seen_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.incidents_daily.company_id is 'The company that it belongs to.';
comment on column guard_bi.incidents_daily.rule is 'The rule that is broken, or rule_failed, job_failed, job_missed.';
comment on column guard_bi.incidents_daily.severity is 'info, warning or critical.';
comment on column guard_bi.incidents_daily.status is 'Their status now: open, acknowledged, snoozed or resolved.';
comment on column guard_bi.incidents_daily.incidents is 'How many incidents.';
comment on column guard_bi.incidents_daily.false_incidents is 'Of these, how many a person found to be none.';
comment on column guard_bi.incidents_daily.mean_detection_seconds is
'From the write to the finding, on average, in seconds.';
comment on column guard_bi.incidents_daily.max_detection_seconds is
'From the write to the finding, at most, in seconds.';

grant select on guard_bi.incidents_daily to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.legacy_defects
with (security_invoker = true)
as
select
    b.rule,
    r.severity,
    case when b.cleared_at is null then 'standing' else 'cleared' end as status,
    b.entity_type,
    b.entity_id,
    b.company_id,
    b.marked_at,
    (b.marked_at at time zone z.value)::date as marked_date,
    b.cleared_at,
    (b.cleared_at at time zone z.value)::date as cleared_date
from guard.baseline as b
cross join guard.settings as z
left join guard.rules as r on b.rule = r.rule
where z.name = 'app_timezone';

comment on view guard_bi.legacy_defects is
'What was wrong when the baseline was taken, and what of it has been cleared.';
comment on column guard_bi.legacy_defects.rule is 'The rule that was broken.';
comment on column guard_bi.legacy_defects.severity is 'info, warning or critical; null if the rule is gone.';
comment on column guard_bi.legacy_defects.status is 'standing or cleared.';
comment on column guard_bi.legacy_defects.entity_type is 'call or appointment.';
comment on column guard_bi.legacy_defects.entity_id is 'The id of the call or appointment.';
comment on column guard_bi.legacy_defects.company_id is 'The company that it belongs to.';
comment on column guard_bi.legacy_defects.marked_at is 'When the baseline was taken.';
comment on column guard_bi.legacy_defects.marked_date is 'The day of marked_at, in settings.app_timezone.';
comment on column guard_bi.legacy_defects.cleared_at is 'When the defect was gone; null while it stands.';
comment on column guard_bi.legacy_defects.cleared_date is 'The day of cleared_at, in settings.app_timezone.';

grant select on guard_bi.legacy_defects to guard_operator, guard_reader, guard_monitor;
