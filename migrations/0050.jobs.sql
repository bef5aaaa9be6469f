-- What runs when, and what became of each run. The ledger learns two kinds of objects: jobs, and procedures.
-- guard.objects has some hundred rows, and nobody but apply writes it:
-- squawk-ignore-file ban-drop-constraint, constraint-missing-not-valid
set local role guard_owner;

create table if not exists guard.jobs (
    job text primary key check (job ~ '^[a-z][a-z0-9_]{2,50}$'),
    -- five fields; weekdays by name, since schedulers count them differently, and never together with days of the month
    schedule text not null check (
        schedule ~ '^[0-9*/,-]+ [0-9*/,-]+ ([0-9*/,-]+ [0-9*/,-]+ \*|\* [0-9*/,-]+ [a-z,-]+)$'
    ),
    every interval not null check (every between '1 minute' and '31 days'),
    default_schedule text not null,
    default_every interval not null,
    command text not null,
    description text not null,
    enabled boolean not null default true,
    in_pg_cron boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table if not exists guard.job_runs (
    id bigint generated always as identity primary key,
    job text not null,
    runner text not null check (runner in ('pg_cron', 'scheduler', 'tick', 'manual')),
    status text not null check (status in ('running', 'succeeded', 'failed', 'crashed', 'skipped')),
    steps integer not null default 0,
    result jsonb,
    error text,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    check ((status = 'running') = (finished_at is null))
);

-- Never twice at once.
create unique index if not exists job_runs_running_idx on guard.job_runs (job) where status = 'running';
create index if not exists job_runs_job_idx on guard.job_runs (job, id desc);
create index if not exists job_runs_started_at_idx on guard.job_runs (started_at);

alter table guard.objects drop constraint if exists objects_kind_check;
alter table guard.objects add constraint objects_kind_check
check (kind in ('function', 'procedure', 'view', 'trigger', 'rule', 'job', 'migration'));

comment on table guard.jobs is 'What guard does by itself, and when: one row per file of sql/jobs.';
comment on column guard.jobs.job is 'What it is called.';
comment on column guard.jobs.schedule is 'When it runs: minute, hour, day, month, weekday, as in a crontab, in UTC.';
comment on column guard.jobs.every is
'How often that is; a job that is overdue by 5 minutes and as much again, at most an hour, is missed.';
comment on column guard.jobs.default_schedule is 'The schedule that it came with.';
comment on column guard.jobs.default_every is 'How often that is.';
comment on column guard.jobs.command is
'The query that does it. Its one value says what was done; with "more": true it is run again, in another transaction.';
comment on column guard.jobs.description is 'What it does.';
comment on column guard.jobs.enabled is 'Whether it runs by itself.';
comment on column guard.jobs.in_pg_cron is 'Whether it was handed to pg_cron.';
comment on column guard.jobs.created_at is 'When it was registered first.';
comment on column guard.jobs.updated_at is 'When it was last changed: registered, set, or handed to pg_cron.';

comment on table guard.job_runs is 'One row per run of a job; written before the run begins.';
comment on column guard.job_runs.id is 'Grows with each run.';
comment on column guard.job_runs.job is 'The job.';
comment on column guard.job_runs.runner is 'Who ran it: pg_cron, scheduler, tick or manual.';
comment on column guard.job_runs.status is
'running, succeeded, failed; crashed: its session ended before it did; skipped: the run before was not over.';
comment on column guard.job_runs.steps is 'In how many transactions it was done.';
comment on column guard.job_runs.result is 'What was done, added up over the steps.';
comment on column guard.job_runs.error is 'Why it failed: SQLSTATE and message, phone numbers masked.';
comment on column guard.job_runs.started_at is 'When it began.';
comment on column guard.job_runs.updated_at is 'When its last step ended.';
comment on column guard.job_runs.finished_at is 'When it ended, or was found dead; null while it runs.';

grant select on guard.jobs, guard.job_runs to guard_operator, guard_reader, guard_monitor;
