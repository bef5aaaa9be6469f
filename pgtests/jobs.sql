-- A job's runs: one at a time, one a minute, recorded whatever becomes of them; what fails or is missed is an incident.
begin;
select plan(45);

select guard.register_job('a_job', '*/5 * * * *', '5 minutes', $$select '{"n": 2}'::jsonb$$, 'counts');
update guard.jobs set enabled = false where job <> 'a_job';
-- not across the end of a minute
select pg_sleep(case when extract(second from clock_timestamp()) > 55 then 6 else 0 end);

create function pg_temp.run(p_runner text) returns text language plpgsql as $$
declare
    v_run bigint := guard.start_job('a_job', p_runner);
    v_going bigint := v_run;
begin
    while v_going is not null loop
        v_going := guard.advance_job(v_going);
    end loop;
    return (select r.status from guard.job_runs as r where r.id = v_run);
end
$$;
create function pg_temp.last(out status text, out steps integer, out result jsonb, out error text)
language sql as $$
    select r.status, r.steps, r.result, r.error from guard.job_runs as r where r.job = 'a_job' order by r.id desc limit 1
$$;
create function pg_temp.is(p_command text) returns void language sql as $$
    select guard.register_job('a_job', '*/5 * * * *', '5 minutes', p_command, 'counts')
$$;

select is(pg_temp.run('tick'), 'succeeded', 'a job is run');
select results_eq(
    'select * from pg_temp.last()', $$values ('succeeded', 1, '{"n": 2}'::jsonb, null::text)$$,
    'and what it did is kept'
);
select is(pg_temp.run('tick'), null, 'a second scheduler does not run it in the same minute');
select is(pg_temp.run('pg_cron'), null, 'of whichever kind');
select is(pg_temp.run('manual'), 'succeeded', 'a person does');
update guard.job_runs set started_at = started_at - interval '1 minute' where job = 'a_job';
select is(pg_temp.run('scheduler'), 'succeeded', 'another minute is another turn');
update guard.job_runs set started_at = started_at + interval '1 hour' where job = 'a_job';
select is(pg_temp.run('scheduler'), 'succeeded', 'and so it is when the clock was set back');
select is((select count(*) from guard.job_runs where job = 'a_job'), 4::bigint, 'a run is one row, no run is none');

-- more
select pg_temp.is($$select '{"n": 2, "more": true, "what": "x"}'::jsonb$$);
create temporary table run as select guard.start_job('a_job', 'manual') as id;
select is((select guard.advance_job(r.id) from run as r), (select r.id from run as r), 'a step may leave more to do');
select is(
    (select guard.start_job('a_job', 'manual')), null, 'a run between two steps is going on: nobody starts another'
);
select throws_ok(
    $$insert into guard.job_runs (job, runner, status) values ('a_job', 'manual', 'running')$$, '23505', null,
    'nor can there be two'
);
select is((select guard.advance_job(r.id) from run as r), (select r.id from run as r), 'then comes another step');
select results_eq(
    'select * from pg_temp.last()', $$values ('running', 2, '{"n": 4, "what": "x"}'::jsonb, null::text)$$,
    'what they did is added up'
);
update guard.job_runs set started_at = started_at - interval '5 minutes' where status = 'running';
select is((select guard.advance_job(r.id) from run as r), null, 'it ends when its next turn has come');
select is((select l.status from pg_temp.last() as l), 'succeeded', 'with success');
select is((select guard.advance_job(r.id) from run as r), null, 'a run that is over makes no more steps');

-- skipped
select guard.start_job('a_job', 'manual');
update guard.job_runs set started_at = started_at - interval '1 minute' where job = 'a_job';
select is(pg_temp.run('tick'), null, 'where the run before goes on,');
select is((select l.status from pg_temp.last() as l), 'skipped', 'the turn is skipped, and that is recorded');

-- crashed
select is(guard.give_up_runs(), 0, 'a young run is not given up');
update guard.job_runs set updated_at = updated_at - interval '1 minute' where job = 'a_job' and status = 'running';
select pg_temp.is($$select '{"n": 2}'::jsonb$$);
select isnt((select guard.start_job('a_job', 'manual')), null, 'a run that nobody holds makes way');
select is(
    (select count(*) from guard.job_runs where job = 'a_job' and status = 'crashed' and finished_at is not null),
    1::bigint, 'and is marked as crashed'
);
select results_eq(
    $$select fingerprint, severity, status, details ->> 'error' from guard.incidents$$,
    $$values ('job_failed:job:a_job', 'critical', 'open', 'its session ended before it did')$$, 'which is an incident'
);
select guard.advance_job(r.id) from guard.job_runs as r where r.status = 'running';
select is(guard.check_jobs(), 0, 'until the job runs well');
select is((select i.status from guard.incidents as i), 'resolved', 'then it is resolved');

-- failed
select pg_temp.is($$select '+4930123456789'::jsonb -> 'a' from guard.nothing$$);
select is(pg_temp.run('manual'), 'failed', 'what goes wrong in a job is recorded');
select is((select left(l.error, 6) from pg_temp.last() as l), '42P01:', 'with its SQLSTATE');
select pg_temp.is($$select ('x' || '+4930123456789')::jsonb$$);
select is(pg_temp.run('manual'), 'failed', 'a message may hold a phone number');
select unalike((select l.error from pg_temp.last() as l), '%30123456789%', 'the record does not');
select is(guard.check_jobs(), 1, 'it is an incident');
select is(
    (select i.occurrences from guard.incidents as i where i.fingerprint = 'job_failed:job:a_job'), 2,
    'the same one, come back'
);
select isnt_empty(
    $$select from guard.notifications where kind = 'job_failed' and message like '%a_job%'$$, 'and somebody is told'
);
select guard.set_job('a_job', false);
select is(guard.check_jobs(), 0, 'a job that was switched off on purpose does not fail');
select is(pg_temp.run('tick'), null, 'nor run by itself');
select pg_temp.is($$select '{"n": 2}'::jsonb$$);
select is(pg_temp.run('manual'), 'succeeded', 'but by hand');

-- told
select is_empty(
    $$select n.message from guard.notifications as n
    where n.kind = 'job_failed' and n.message !~ '^job_failed: the job a_job (crashed|failed): .*(session|22P02)'$$,
    'what is told names the job once, and the error'
);

-- missed
select guard.set_job('a_job', true);
update guard.jobs set updated_at = updated_at - interval '16 minutes' where job = 'a_job';
update guard.job_runs set started_at = now() - interval '16 minutes' where job = 'a_job';
select is(guard.check_jobs(), 1, 'a job that has not run for twice its time and 5 minutes is missed');
select is(
    (select i.status from guard.incidents as i where i.fingerprint = 'job_missed:job:a_job'), 'open', 'an incident, too'
);
select is(pg_temp.run('tick'), 'succeeded', 'it runs again');
select is(guard.check_jobs(), 0, 'and all is well');
select guard.set_job('a_job', true, '0 2 * * *', '1 day');
update guard.jobs set updated_at = updated_at - interval '2 days' where job = 'a_job';
update guard.job_runs set started_at = now() - interval '25 hours' where job = 'a_job';
select is(guard.check_jobs(), 0, 'a daily one is given an hour and 5 minutes');
update guard.job_runs set started_at = now() - interval '25 hours 6 minutes' where job = 'a_job';
select is(guard.check_jobs(), 1, 'not another day');
select results_eq(
    $$select i.description from guard.incidents as i where i.fingerprint = 'job_missed:job:a_job'$$,
    array['the job a_job is overdue: it is to run every 1 day'], 'and the incident says how often it is to run'
);
select guard.set_job('a_job', true, '*/5 * * * *', '5 minutes');
update guard.job_runs set started_at = now() - interval '16 minutes', runner = 'manual' where job = 'a_job';
select is(guard.check_jobs(), 0, 'where nothing runs jobs by itself, none is missed');

select throws_ok($$select guard.start_job('no_job', 'manual')$$, 'ZG501', null, 'there is no such job');
select throws_ok(
    $$select guard.set_job('a_job', null, '*/5 * * * * *', '5 minutes')$$, 'ZG502', null, 'six fields are no schedule'
);

select * from finish();
rollback;
