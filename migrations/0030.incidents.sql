-- What detection keeps: one incident per defect, what was wrong at adoption, how far reconciliation has come; and
-- appointments, too, can be looked at again.
-- pending_checks is guard's own and short-lived, and nobody but guard reads it:
-- squawk-ignore-file ban-drop-constraint, ban-drop-not-null, constraint-missing-not-valid, require-concurrent-index-creation
set local role guard_owner;

create table if not exists guard.incidents (
    id bigint generated always as identity primary key,
    fingerprint text not null unique,
    rule text not null,
    severity text not null check (severity in ('info', 'warning', 'critical')),
    entity_type text not null check (entity_type in ('call', 'appointment', 'rule', 'job')),
    entity_id bigint,
    company_id bigint,
    description text not null,
    details jsonb not null default '{}',
    occurrences integer not null default 1 check (occurrences > 0),
    occurred_at timestamptz,
    first_seen_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    status text not null default 'open' check (status in ('open', 'acknowledged', 'snoozed', 'resolved')),
    snoozed_until timestamptz,
    assignee text,
    note text,
    is_false boolean not null default false,
    acknowledged_at timestamptz,
    resolved_at timestamptz,
    resolved_by text,
    last_notified_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check ((status = 'snoozed') = (snoozed_until is not null)),
    check ((status = 'resolved') = (resolved_at is not null))
);

create index if not exists incidents_standing_idx on guard.incidents (rule, entity_type, entity_id)
where status <> 'resolved';
create index if not exists incidents_first_seen_at_idx on guard.incidents (first_seen_at);
create index if not exists incidents_entity_idx on guard.incidents (entity_type, entity_id);

create table if not exists guard.baseline (
    rule text not null,
    entity_type text not null check (entity_type in ('call', 'appointment')),
    entity_id bigint not null,
    company_id bigint,
    marked_at timestamptz not null default now(),
    cleared_at timestamptz,
    primary key (rule, entity_id)
);

create index if not exists baseline_standing_idx on guard.baseline (rule, entity_id) where cleared_at is null;

create table if not exists guard.reconcile_progress (
    rule text primary key,
    last_id bigint not null default 0,
    rounds bigint not null default 0,
    updated_at timestamptz not null default now()
);

-- A call or an appointment; each waits once.
alter table guard.pending_checks drop constraint if exists pending_checks_pkey;
alter table guard.pending_checks alter column call_id drop not null;
alter table guard.pending_checks add column if not exists appointment_id bigint;
alter table guard.pending_checks drop constraint if exists pending_checks_one_entity;
alter table guard.pending_checks add constraint pending_checks_one_entity
check (num_nonnulls(call_id, appointment_id) = 1);
create unique index if not exists pending_checks_call_idx on guard.pending_checks (call_id);
create unique index if not exists pending_checks_appointment_idx on guard.pending_checks (appointment_id);

comment on table guard.incidents is
'What is wrong, one row per defect: opened by detection, refreshed while it stands, resolved once it is gone.';
comment on column guard.incidents.id is 'Grows with each incident.';
comment on column guard.incidents.fingerprint is 'What makes it one incident: the rule and the entity.';
comment on column guard.incidents.rule is
'The rule that is broken; or rule_failed, job_failed, job_missed: guard''s own troubles.';
comment on column guard.incidents.severity is 'info, warning or critical.';
comment on column guard.incidents.entity_type is 'call, appointment, rule or job.';
comment on column guard.incidents.entity_id is 'The id of the call or appointment; null for a rule or job.';
comment on column guard.incidents.company_id is 'The company that it belongs to.';
comment on column guard.incidents.description is 'What is wrong.';
comment on column guard.incidents.details is 'The values that contradict each other; no phone numbers.';
comment on column guard.incidents.occurrences is 'How often it came to be: written anew, or come back.';
comment on column guard.incidents.occurred_at is 'When the row was last written, as its rule saw it.';
comment on column guard.incidents.first_seen_at is 'When it was found first, or found again after it was resolved.';
comment on column guard.incidents.last_seen_at is 'When it was seen last, to the minute.';
comment on column guard.incidents.status is 'open, acknowledged, snoozed, or resolved.';
comment on column guard.incidents.snoozed_until is 'Until when nobody wants to hear of it.';
comment on column guard.incidents.assignee is 'Who looks after it.';
comment on column guard.incidents.note is 'What somebody wrote about it.';
comment on column guard.incidents.is_false is 'Whether a person found that nothing was wrong.';
comment on column guard.incidents.acknowledged_at is 'When a person reacted first.';
comment on column guard.incidents.resolved_at is 'When it was resolved.';
comment on column guard.incidents.resolved_by is 'Who resolved it; guard: the defect was gone.';
comment on column guard.incidents.last_notified_at is 'When a message about it was written last.';
comment on column guard.incidents.created_at is 'When this row was written first.';
comment on column guard.incidents.updated_at is 'When this row was written last.';

comment on table guard.baseline is
'What was wrong when the baseline was taken: known, not news, and counted down as it is cleared.';
comment on column guard.baseline.rule is 'The rule that was broken.';
comment on column guard.baseline.entity_type is 'call or appointment.';
comment on column guard.baseline.entity_id is 'The id of the call or appointment.';
comment on column guard.baseline.company_id is 'The company that it belongs to.';
comment on column guard.baseline.marked_at is 'When the baseline was taken.';
comment on column guard.baseline.cleared_at is 'When the defect was found to be gone; null while it stands.';

comment on table guard.reconcile_progress is
'How far reconciliation has come with each rule, so that it goes on there after an interruption.';
comment on column guard.reconcile_progress.rule is 'The rule.';
comment on column guard.reconcile_progress.last_id is 'The id that was examined last; 0 at the start of a round.';
comment on column guard.reconcile_progress.rounds is 'How often everything was gone through.';
comment on column guard.reconcile_progress.updated_at is 'When it went on last.';

comment on table guard.pending_checks is
'Calls and appointments that must be looked at, once their grace has passed.';
comment on column guard.pending_checks.call_id is 'The call; null if it is an appointment.';
comment on column guard.pending_checks.appointment_id is 'The appointment; null if it is a call.';
comment on column guard.pending_checks.created_at is 'When the suspicious row was written.';

grant select on guard.incidents, guard.baseline, guard.reconcile_progress
to guard_operator, guard_reader, guard_monitor;
