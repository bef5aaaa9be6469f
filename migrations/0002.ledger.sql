-- The ledger of the replaceable SQL objects, the settings, and the audit log.
set local role guard_owner;

create table if not exists guard.apply_runs (
    id bigint generated always as identity primary key,
    version text not null,
    actor text not null default session_user,
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    last_migration text,
    undone_at timestamptz
);

create table if not exists guard.object_log (
    id bigint generated always as identity primary key,
    run_id bigint not null references guard.apply_runs (id),
    path text not null,
    checksum text not null,
    body text,
    applied_at timestamptz not null default clock_timestamp()
);

create index if not exists object_log_path_idx on guard.object_log (path, id desc);

create table if not exists guard.objects (
    kind text not null check (kind in ('function', 'view', 'trigger', 'rule', 'migration')),
    identity text not null,
    path text not null,
    checksum text not null,
    fingerprint text,
    applied_at timestamptz not null default clock_timestamp(),
    primary key (kind, identity)
);

create table if not exists guard.settings (
    name text primary key,
    value text not null,
    default_value text not null,
    unit text not null,
    description text not null,
    updated_at timestamptz not null default now()
);

create table if not exists guard.audit_log (
    id bigint generated always as identity primary key,
    actor text not null default session_user,
    action text not null,
    object text not null,
    reason text,
    before jsonb,
    after jsonb,
    created_at timestamptz not null default clock_timestamp()
);

create index if not exists audit_log_object_idx on guard.audit_log (object, created_at desc);

comment on table guard.apply_runs is
'One row per apply that changed something: who, when, the last migration then in place, when it was undone.';
comment on table guard.object_log is
'Every text of every file under sql/ that was ever applied; a null body says that the file''s objects were dropped.';
comment on table guard.objects is
'The replaceable objects as last applied: the file, its checksum, and a fingerprint of what the catalog then held.';
comment on table guard.settings is 'One row per setting: value, default, unit and meaning.';
comment on table guard.audit_log is
'Who changed a rule, a setting, a breaker or a queue item, with the values before and after.';

comment on column guard.apply_runs.id is 'Grows with each run.';
comment on column guard.apply_runs.version is 'The version of guard that ran.';
comment on column guard.apply_runs.actor is 'The database user that ran it.';
comment on column guard.apply_runs.started_at is 'When it began to change something.';
comment on column guard.apply_runs.finished_at is 'When it ended; null if it was cut short.';
comment on column guard.apply_runs.last_migration is 'The newest migration in place when it ended.';
comment on column guard.apply_runs.undone_at is 'When guard rollback undid it; null if it stands.';

comment on column guard.object_log.id is 'Grows with each text.';
comment on column guard.object_log.run_id is 'The run that applied it.';
comment on column guard.object_log.path is 'The file, relative to the project.';
comment on column guard.object_log.checksum is 'SHA-256 of the text.';
comment on column guard.object_log.body is 'The whole text; null if the objects of the file were dropped.';
comment on column guard.object_log.applied_at is 'When it was applied.';

comment on column guard.objects.kind is 'function, view, trigger, rule or migration.';
comment on column guard.objects.identity is
'A regprocedure, a qualified view, table and trigger, a rule, or a migration.';
comment on column guard.objects.path is 'The file that provides it.';
comment on column guard.objects.checksum is 'SHA-256 of that file as it was applied.';
comment on column guard.objects.fingerprint is
'A digest of the definition, owner and rights that the catalog then held; null for migrations.';
comment on column guard.objects.applied_at is 'When it was applied last.';

comment on column guard.settings.name is 'What it is called.';
comment on column guard.settings.value is 'Its value, as text.';
comment on column guard.settings.default_value is 'The value that it started with.';
comment on column guard.settings.unit is 'What the value is measured in, or what kind of value it is.';
comment on column guard.settings.description is 'What it decides.';
comment on column guard.settings.updated_at is 'When it was changed last.';

comment on column guard.audit_log.id is 'Grows with each action.';
comment on column guard.audit_log.actor is 'The database user that acted.';
comment on column guard.audit_log.action is 'What was done.';
comment on column guard.audit_log.object is 'The rule, setting, breaker or queue item that it was done to.';
comment on column guard.audit_log.reason is 'Why, in the words of the actor.';
comment on column guard.audit_log.before is 'What was before.';
comment on column guard.audit_log.after is 'What was after.';
comment on column guard.audit_log.created_at is 'When it was done.';

grant select on guard.settings to guard_app, guard_operator, guard_reader, guard_monitor;
grant update (value, updated_at) on guard.settings to guard_operator;
grant select on guard.audit_log to guard_operator, guard_reader;
grant select on guard.objects, guard.apply_runs to guard_operator, guard_monitor;
