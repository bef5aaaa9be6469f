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

grant select on guard.settings to guard_app, guard_operator, guard_reader, guard_monitor;
grant update (value, updated_at) on guard.settings to guard_operator;
grant select on guard.audit_log to guard_operator, guard_reader;
grant select on guard.objects, guard.apply_runs to guard_operator, guard_monitor;
