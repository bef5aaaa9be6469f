-- provides: function guard.register_job(text, text, interval, text, text)
-- provides: function guard.set_job(text, boolean, text, interval)
-- provides: procedure guard.run_job(text, text, bigint)
-- provides: function guard.start_job(text, text)
-- provides: function guard.advance_job(bigint)
-- provides: function guard.add_up(jsonb, jsonb)
-- provides: function guard.give_up_runs()
-- provides: function guard.check_jobs()
--
-- Jobs: pg_cron, guard scheduler and guard tick all run the same statement, `call guard.run_job('detect', 'tick')`.
--
-- A run is three or more transactions: its row is committed first, so that a run that is killed is known; each step
-- then commits what it did. A unique index lets a job have one row that is running, so it never runs twice at once.
-- Whoever makes a step holds a transaction-level advisory lock named after the job, which goes with its session however
-- that ends: a run whose lock nobody holds is dead, and makes way; nothing stays behind at a pooler. Between two steps
-- the lock is free for a moment: a run whose row is younger than 5 seconds therefore counts as alive.
--
-- Raises ZG501 (no such job), ZG502 (not a schedule).

-- Registers a job or brings it up to date. What an operator has set is kept: enabled, and a schedule of his own.
create or replace function guard.register_job(
    p_job text, p_schedule text, p_every interval, p_command text, p_description text
)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    insert into guard.jobs (job, schedule, every, default_schedule, default_every, command, description)
    values (p_job, p_schedule, p_every, p_schedule, p_every, p_command, p_description)
    on conflict (job) do update set
        schedule = case when jobs.schedule = jobs.default_schedule then excluded.schedule else jobs.schedule end,
        every = case when jobs.schedule = jobs.default_schedule then excluded.every else jobs.every end,
        default_schedule = excluded.default_schedule,
        default_every = excluded.default_every,
        command = excluded.command,
        description = excluded.description,
        updated_at = now()
$$;

comment on function guard.register_job(text, text, interval, text, text) is
'Register a job, or bring its registration up to date; keeps what an operator has set.';

-- What is null stays as it is. pg_cron learns a new schedule with the next apply.
create or replace function guard.set_job(
    p_job text, p_enabled boolean, p_schedule text = null, p_every interval = null
)
returns guard.jobs
language plpgsql
volatile
security definer -- an operator may set when a job runs, not what it does
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.jobs;
    v_after guard.jobs;
begin
    select j.* into v_before from guard.jobs as j where j.job = p_job for no key update;
    if not found then
        raise exception using
            errcode = 'ZG501',
            message = format('there is no job %L', left(p_job, 60)),
            hint = 'select job from guard.jobs lists them';
    end if;
    if (p_schedule is null) <> (p_every is null) then
        raise exception using
            errcode = 'ZG502',
            message = 'a schedule and how often that is go together',
            hint = 'As in: select guard.set_job(''detect'', true, ''*/10 * * * *'', ''10 minutes'').';
    end if;
    begin
        update guard.jobs as j
        set
            enabled = coalesce(p_enabled, j.enabled),
            schedule = coalesce(p_schedule, j.schedule),
            every = coalesce(p_every, j.every),
            updated_at = now()
        where j.job = p_job
        returning j.* into v_after;
    exception
        when check_violation then
            raise exception using
                errcode = 'ZG502',
                message = format('%L every %s is not a schedule', left(p_schedule, 60), p_every),
                hint = 'Minute, hour, day, month, weekday, as in a crontab; weekdays by name (mon-fri), and not together '
                'with a day; from a minute to 31 days.';
    end;
    insert into guard.audit_log (action, object, before, after)
    values ('set_job', p_job, to_jsonb(v_before), to_jsonb(v_after));
    return v_after;
end
$$;

comment on function guard.set_job(text, boolean, text, interval) is
'Switch a job on or off, or give it another schedule; the change is audited.';

-- Gives the id of the run, or null: it runs already, ran within this minute, is switched off, or this is a standby.
-- No pinned search_path and no definer's rights, since neither goes with COMMIT; it names no operator and no type but
-- those of the grammar, so there is nothing that a search_path could lead astray.
create or replace procedure guard.run_job(p_job text, p_runner text = 'manual', inout p_run bigint = null)
language plpgsql
security invoker
as $$
declare
    v_going bigint;
begin
    p_run := guard.start_job(p_job, p_runner);
    commit;
    v_going := p_run;
    while v_going is not null loop
        v_going := guard.advance_job(v_going);
        commit;
        if v_going is not null then
            perform pg_catalog.pg_sleep(0.1); -- others have their turn
            commit;
        end if;
    end loop;
    if p_run is not null then
        perform guard.check_jobs();
        commit;
    end if;
end
$$;

comment on procedure guard.run_job(text, text, bigint) is -- noqa: LT01
'Run a job; gives the id of the run, null if there was none. Call it outside of a transaction.';

-- A manual run takes place also if the job is switched off. Locks: an advisory lock, so that of two schedulers the second
-- sees what the first did; not the one of the steps, which may be held for long.
create or replace function guard.start_job(p_job text, p_runner text)
returns bigint
language plpgsql
volatile
security definer -- a job's login need not own guard's tables
set search_path = pg_catalog, pg_temp
as $$
declare
    v_job guard.jobs;
    v_run bigint;
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    select j.* into v_job from guard.jobs as j where j.job = p_job;
    if not found then
        raise exception using
            errcode = 'ZG501',
            message = format('there is no job %L', left(p_job, 60)),
            hint = 'guard jobs list shows them.';
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.start_job'), hashtext(p_job));
    -- several schedulers are one; a clock that was set back stops nothing for longer than the minute
    if
        p_runner <> 'manual'
        and (
            not v_job.enabled
            or exists (
                select from guard.job_runs as r
                where
                    r.job = p_job
                    and r.runner <> 'manual'
                    and r.started_at >= date_trunc('minute', clock_timestamp())
                    and r.started_at < date_trunc('minute', clock_timestamp()) + interval '1 minute'
            )
        )
    then
        return null;
    end if;
    if guard.give_up_runs() > 0 then
        perform guard.check_jobs();
    end if;
    if exists (select from guard.job_runs as r where r.job = p_job and r.status = 'running') then
        if p_runner <> 'manual' then
            insert into guard.job_runs (job, runner, status, finished_at)
            values (p_job, p_runner, 'skipped', clock_timestamp());
        end if;
        return null;
    end if;
    insert into guard.job_runs (job, runner, status) values (p_job, p_runner, 'running') returning id into v_run;
    return v_run;
end
$$;

comment on function guard.start_job(text, text) is 'Begin a run of a job, if it may run now; the caller commits.';

-- Gives the run if there is more to do. A job that always has more stops when its next turn has come.
-- Whatever goes wrong in a job is its result: it is recorded, and the next turn is the retry.
create or replace function guard.advance_job(p_run bigint)
returns bigint
language plpgsql
volatile
security definer -- the catalogue's commands run with guard's rights
set search_path = pg_catalog, pg_temp
as $$
declare
    v_job guard.jobs;
    v_run guard.job_runs;
    v_result jsonb;
    v_more boolean;
begin
    perform pg_advisory_xact_lock(hashtext('guard.job'), hashtext(r.job)) from guard.job_runs as r where r.id = p_run;
    select r.* into v_run from guard.job_runs as r where r.id = p_run and r.status = 'running' for no key update;
    select j.* into v_job from guard.jobs as j where j.job = v_run.job;
    if not found then
        return null; -- it was given up meanwhile
    end if;
    begin
        execute v_job.command into v_result;
        v_more := coalesce((v_result ->> 'more')::boolean, false)
            and clock_timestamp() between v_run.started_at and v_run.started_at + v_job.every;
        update guard.job_runs as r
        set
            status = case when v_more then 'running' else 'succeeded' end,
            steps = r.steps + 1,
            result = guard.add_up(r.result, v_result - 'more'),
            updated_at = clock_timestamp(),
            finished_at = case when not v_more then clock_timestamp() end
        where r.id = p_run;
    exception
        when query_canceled or others then
            update guard.job_runs as r
            set
                status = 'failed',
                steps = r.steps + 1,
                error = left(format('%s: %s', sqlstate, guard.mask_phones(sqlerrm)), 1000),
                updated_at = clock_timestamp(),
                finished_at = clock_timestamp()
            where r.id = p_run;
            v_more := false;
    end;
    return case when v_more then p_run end;
end
$$;

comment on function guard.advance_job(bigint) is
'Make one step of a run, and record what came of it; the caller commits.';

create or replace function guard.add_up(p_before jsonb, p_step jsonb)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_before is null or p_step is null then coalesce(p_step, p_before)
        else p_before || (
            select jsonb_object_agg(
                s.key,
                case
                    when jsonb_typeof(s.value) = 'number' and jsonb_typeof(p_before -> s.key) = 'number'
                        then to_jsonb((p_before ->> s.key)::numeric + (p_step ->> s.key)::numeric)
                    else s.value
                end
            )
            from jsonb_each(p_step) as s
        )
    end
$$;

comment on function guard.add_up(jsonb, jsonb) is 'What the steps of a run did, in sum.';

-- A run that nobody makes steps of any more: its session was killed, or the server went down.
-- Locks: the rows of dead runs; one that somebody holds is alive.
create or replace function guard.give_up_runs()
returns integer
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with dead as (
        select r.id
        from guard.job_runs as r
        where
            r.status = 'running'
            and abs(extract(epoch from clock_timestamp() - r.updated_at)) > 5
            and not exists (
                select
                from pg_catalog.pg_locks as l
                where
                    l.locktype = 'advisory'
                    and l.granted
                    and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
                    and l.objsubid = 2
                    and l.classid::bigint = hashtext('guard.job')::bigint & 4294967295
                    and l.objid::bigint = hashtext(r.job)::bigint & 4294967295
                    and l.pid <> pg_backend_pid()
            )
        for update skip locked
    ),
    given_up as (
        update guard.job_runs as r
        set
            status = 'crashed',
            error = 'its session ended before it did',
            updated_at = clock_timestamp(),
            finished_at = clock_timestamp()
        from dead as d
        where r.id = d.id
        returning r.id
    )
    select count(*)::integer from given_up
$$;

comment on function guard.give_up_runs() is 'Mark runs as crashed whose session is gone; gives their number.';

-- Opens an incident for each job whose last run failed or crashed, and for each that is overdue by more than 5 minutes
-- and the time between two runs, of which an hour counts at most. Resolves those of jobs that are right again. A job
-- can only be missed where something runs jobs: pg_cron was told to, or a scheduler once did. A stopped scheduler cannot
-- tell on itself: guard watch and guard verify look, too.
create or replace function guard.check_jobs()
returns integer
language plpgsql
volatile
security definer -- a job's login need not own guard's tables
set search_path = pg_catalog, pg_temp
as $$
declare
    v_found jsonb;
begin
    if pg_is_in_recovery() then
        return 0;
    end if;
    perform guard.give_up_runs();
    select coalesce(jsonb_agg(f.found), '[]') into v_found
    from (
        select
            jsonb_build_object(
                'rule', 'job_failed',
                'severity', 'critical',
                'entity_type', 'job',
                'subject', j.job,
                'occurred_at', r.started_at,
                'description', format('the job %s %s', j.job, r.status),
                'details', jsonb_build_object('subject', j.job, 'run', r.id, 'error', r.error)
            ) as found
        from guard.jobs as j
        cross join lateral (
            select r.id, r.status, r.error, r.started_at
            from guard.job_runs as r
            where r.job = j.job and r.status::text = any('{succeeded,failed,crashed}')
            order by r.id desc
            limit 1
        ) as r
        where j.enabled and r.status <> 'succeeded'
        union all
        select
            jsonb_build_object(
                'rule', 'job_missed',
                'severity', 'critical',
                'entity_type', 'job',
                'subject', j.job,
                'occurred_at', greatest(j.updated_at, r.started_at),
                'description', format('the job %s is overdue: it is to run every %s', j.job, j.every),
                'details', jsonb_build_object(
                    'subject', j.job, 'run', r.id, 'last_run', r.started_at, 'status', r.status
                )
            ) as found
        from guard.jobs as j
        left join lateral (
            select r.id, r.status, r.started_at
            from guard.job_runs as r
            where r.job = j.job and r.status <> 'skipped'
            order by r.id desc
            limit 1
        ) as r on true
        where
            j.enabled
            and (j.in_pg_cron or exists (select from guard.job_runs as s where s.runner <> 'manual'))
            and greatest(j.updated_at, r.started_at) + j.every + least(j.every, interval '1 hour') + interval '5 minutes'
            < clock_timestamp()
    ) as f;
    if v_found <> '[]' then
        perform guard.open_incidents(v_found);
    end if;
    perform guard.resolve_incidents(array_agg(i.fingerprint), 'guard')
    from guard.incidents as i
    where
        i.entity_type = 'job'
        and i.status <> 'resolved'
        and not exists (
            select from jsonb_array_elements(v_found) as f
            where i.fingerprint = format('%s:job:%s', f.value ->> 'rule', f.value ->> 'subject')
        )
    having count(*) > 0;
    return jsonb_array_length(v_found);
end
$$;

comment on function guard.check_jobs() is
'Open and resolve the incidents of jobs that failed, crashed or were missed; gives how many stand.';

grant execute on function guard.set_job(text, boolean, text, interval) to guard_operator;
grant execute on procedure guard.run_job(text, text, bigint) to guard_operator;
grant execute on function guard.start_job(text, text) to guard_operator;
grant execute on function guard.advance_job(bigint) to guard_operator;
grant execute on function guard.check_jobs() to guard_operator;
