-- The registry of rules, the log of what they found, and the calls that must be looked at again.
set local role guard_owner;

create table if not exists guard.rules (
    rule text primary key check (rule ~ '^[a-z][a-z0-9_]{2,50}$'),
    severity text not null check (severity in ('info', 'warning', 'critical')),
    entity_type text not null check (entity_type in ('call', 'appointment')),
    mode text not null check (mode in ('off', 'observe', 'correct', 'enforce')),
    rollout_pct integer not null default 100 check (rollout_pct between 0 and 100),
    grace interval not null default '0',
    detection_window interval not null default '1 hour',
    alert_throttle interval not null default '5 minutes',
    repairable boolean not null,
    enforceable boolean not null,
    errcode text not null check (errcode ~ '^ZG[0-9A-Z]{3}$'),
    description text not null,
    repair text not null,
    runbook text not null,
    constraint_kind text check (constraint_kind in ('check', 'unique', 'exclude')),
    constraint_definition text,
    probe text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check ((constraint_kind is null) = (constraint_definition is null))
);

create sequence if not exists guard.data_consistency_alerts_id_seq;

create table if not exists guard.data_consistency_alerts (
    id bigint not null default nextval('guard.data_consistency_alerts_id_seq'),
    alert_type text not null,
    severity text not null,
    entity_type text not null,
    entity_id bigint,
    company_id bigint,
    description text not null,
    metadata jsonb not null default '{}',
    detected_at timestamptz not null default now(),
    auto_corrected boolean not null default false,
    corrected_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (id, detected_at)
) partition by range (detected_at);

create table if not exists guard.data_consistency_alerts_default
partition of guard.data_consistency_alerts default;

create index if not exists data_consistency_alerts_detected_at_idx
on guard.data_consistency_alerts (detected_at);
create index if not exists data_consistency_alerts_type_idx
on guard.data_consistency_alerts (alert_type, detected_at);
create index if not exists data_consistency_alerts_entity_idx
on guard.data_consistency_alerts (entity_type, entity_id, detected_at);

create table if not exists guard.pending_checks (
    call_id bigint primary key,
    due_at timestamptz not null,
    created_at timestamptz not null default now()
);

create index if not exists pending_checks_due_at_idx on guard.pending_checks (due_at);

create table if not exists guard.faults (
    id bigint generated always as identity primary key,
    place text not null,
    errcode text not null,
    message text not null,
    created_at timestamptz not null default now()
);

create index if not exists faults_created_at_idx on guard.faults (created_at);

comment on table guard.rules is
'The registry: what is wrong, how grave it is, which rung of the ladder the rule stands on, and for how many percent.';
comment on column guard.rules.mode is 'off: nothing; observe: record; correct: repair and record; enforce: refuse.';
comment on column guard.rules.rollout_pct is
'The percentage of calls, by hash of the id, that get this mode; the others get the rung below.';
comment on column guard.rules.grace is 'How long a contradiction may stand before it counts.';
comment on column guard.rules.detection_window is 'How far back a rule that reports facts looks.';
comment on column guard.rules.alert_throttle is 'The least time between two notifications of one rule and entity.';
comment on column guard.rules.repairable is 'Whether guard can repair it; if not, correct only records.';
comment on column guard.rules.enforceable is
'Whether refusing the write makes sense; a fact that is recorded is never refused.';
comment on column guard.rules.constraint_definition is
'The constraint that makes the rule hold without triggers, as in ALTER TABLE; a unique index, as in CREATE INDEX.';
comment on column guard.rules.probe is
'Breaks the rule for call $1, appointment $2, company $3; may use customer $4, another company $5, staff member $6.';

comment on table guard.data_consistency_alerts is
'Append-only log of detections and corrections, partitioned by month; metadata.changes holds the values before.';
comment on table guard.pending_checks is
'Calls that claim a booking and must be looked at once their grace has passed.';
comment on table guard.faults is
'Faults of guard itself that were not allowed to fail an application''s write.';

comment on column guard.rules.rule is 'Its name, and that of its view in schema guard.';
comment on column guard.rules.severity is 'info, warning or critical.';
comment on column guard.rules.entity_type is 'What it is about: call or appointment.';
comment on column guard.rules.errcode is 'The SQLSTATE of its refusals.';
comment on column guard.rules.description is 'What is wrong where it is broken.';
comment on column guard.rules.repair is 'What guard does about it at correct.';
comment on column guard.rules.runbook is 'What the application or a person should do.';
comment on column guard.rules.constraint_kind is 'check, unique or exclude; null if it has none.';
comment on column guard.rules.created_at is 'When it was registered first.';
comment on column guard.rules.updated_at is 'When it was registered or moved last.';

comment on column guard.data_consistency_alerts.id is 'Unique together with detected_at.';
comment on column guard.data_consistency_alerts.alert_type is 'The rule.';
comment on column guard.data_consistency_alerts.severity is 'The severity of the rule when it was detected.';
comment on column guard.data_consistency_alerts.entity_type is 'call or appointment.';
comment on column guard.data_consistency_alerts.entity_id is 'The id of the call or appointment.';
comment on column guard.data_consistency_alerts.company_id is 'The company that it belongs to.';
comment on column guard.data_consistency_alerts.description is 'What was wrong.';
comment on column guard.data_consistency_alerts.metadata is
'mode: what the rule stood at; changes: column, before and after of each correction.';
comment on column guard.data_consistency_alerts.detected_at is 'When it was detected.';
comment on column guard.data_consistency_alerts.auto_corrected is 'Whether guard repaired it in the same write.';
comment on column guard.data_consistency_alerts.corrected_at is 'When it was repaired; null if it was not.';
comment on column guard.data_consistency_alerts.created_at is 'When this row was written.';
comment on column guard.data_consistency_alerts.updated_at is 'When this row was written last.';

comment on column guard.pending_checks.call_id is 'The call.';
comment on column guard.pending_checks.due_at is 'When its grace has passed.';
comment on column guard.pending_checks.created_at is 'When the claim was written.';

comment on column guard.faults.id is 'Grows with each fault.';
comment on column guard.faults.place is 'The function that could not do its part.';
comment on column guard.faults.errcode is 'The SQLSTATE.';
comment on column guard.faults.message is 'The message, without detail.';
comment on column guard.faults.created_at is 'When it happened.';

grant select on guard.rules to guard_app, guard_operator, guard_reader, guard_monitor;
grant select on guard.data_consistency_alerts to guard_operator, guard_reader, guard_monitor;
grant select on guard.pending_checks to guard_operator, guard_reader, guard_monitor;
grant select on guard.faults to guard_operator, guard_monitor;
