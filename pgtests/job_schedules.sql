-- What an operator sets of a job, and what a new version of guard may change.
begin;
select plan(14);

select guard.register_job('a_job', '0 2 * * *', '1 day', 'select null::jsonb', 'one');
select is(
    (select j.schedule from guard.set_job('a_job', null, '0 3 * * mon-fri', '3 days') as j), '0 3 * * mon-fri',
    'a job can be given another schedule'
);
select is(
    (select a.after ->> 'every' from guard.audit_log as a where a.action = 'set_job'), '3 days', 'which is audited'
);
select guard.register_job('a_job', '0 4 * * *', '1 day', 'select null::jsonb', 'two');
select results_eq(
    $$select schedule, every, default_schedule, description from guard.jobs where job = 'a_job'$$,
    $$values ('0 3 * * mon-fri', interval '3 days', '0 4 * * *', 'two')$$, 'a new version keeps it'
);
select guard.set_job('a_job', false, '0 4 * * *', '1 day');
select guard.register_job('a_job', '0 5 * * *', '12 hours', 'select null::jsonb', 'three');
select results_eq(
    $$select schedule, every, enabled from guard.jobs where job = 'a_job'$$,
    $$values ('0 5 * * *', interval '12 hours', false)$$, 'a schedule that nobody changed follows the file'
);

prepare set_schedule as select guard.set_job('a_job', true, $1, '1 hour');
select throws_ok($$execute set_schedule('0 5 * *')$$, 'ZG502', null, 'four fields');
select throws_ok($$execute set_schedule('0 5 * * * *')$$, 'ZG502', null, 'six fields');
select throws_ok($$execute set_schedule('0 5 * * 1')$$, 'ZG502', null, 'a weekday as a number');
select throws_ok($$execute set_schedule('0 5 1 * mon')$$, 'ZG502', null, 'a day of the month and of the week');
select throws_ok($$execute set_schedule('@hourly')$$, 'ZG502', null, 'a name');
select throws_ok(
    $$select guard.set_job('a_job', true, '0 5 * * *')$$, 'ZG502', null, 'not without how often that is'
);
select throws_ok(
    $$select guard.set_job('a_job', true, '0 5 * * *', '1 second')$$, 'ZG502', null, 'which is a minute at least'
);
select throws_ok($$select guard.set_job('no_job', true)$$, 'ZG501', null, 'there is no such job');

set local role guard_operator;
select throws_ok(
    $$update guard.jobs set command = 'select 1'$$, '42501', null, 'what a job does is not for operators to say'
);
select lives_ok($$select guard.set_job('a_job', true)$$, 'when it does it, is');

select * from finish();
rollback;
