-- Half-open: one probe at a time, under a lease that nobody extends; late results do not count.
begin;
select plan(19);

create function pg_temp.later(p_seconds numeric) returns void language sql as $$
    update guard.circuit_breaker_states
    set open_until = open_until - p_seconds * interval '1 second', probe_until = probe_until - p_seconds * interval '1 second'
$$;
create temporary table taken as select 'early' as name, a.* from guard.breaker_acquire('k') as a;
select guard.breaker_record('k', a.token, 'failure', p_failure_threshold => 1, p_cooldown_seconds => 30)
from guard.breaker_acquire('k') as a;
select pg_temp.later(30);

insert into taken select 'first' as name, a.* from guard.breaker_acquire('k') as a;
select results_eq(
    $$select allowed, state, generation from taken where name = 'first'$$, $$values (true, 'half_open', 2::bigint)$$,
    'the first caller after the cooldown is the probe'
);
select results_eq(
    $$select allowed, state, token, retry_after_seconds between 0 and 1 from guard.breaker_acquire('k')$$,
    $$values (false, 'half_open', null::uuid, true)$$, 'the second is turned away'
);
select results_eq(
    $$select probing, round(extract(epoch from s.probe_until - clock_timestamp())) <= 15
    from guard.breaker_status('k'), guard.circuit_breaker_states as s$$,
    'values (true, true)', 'and does not extend the lease'
);
select pg_temp.later(16);
insert into taken select 'second' as name, a.* from guard.breaker_acquire('k') as a;
select results_eq(
    $$select allowed, generation from taken where name = 'second'$$, $$values (true, 2::bigint)$$,
    'a lease that has ended goes to the next: a prober that died blocks nothing'
);
select is(
    (select guard.breaker_record('k', t.token, 'failure', 'Late', 'n1') from taken as t where t.name = 'first'),
    'half_open', 'the result of the first comes late and changes nothing'
);
select is(
    (select s.probe_token from guard.circuit_breaker_states as s),
    (select t.token from taken as t where t.name = 'second'),
    'nor does it release the lease of the second'
);
select is(
    (select guard.breaker_record('k', t.token, 'success', null, 'n1') from taken as t where t.name = 'early'),
    'half_open', 'nor does a success from before the circuit opened'
);
select results_eq(
    $$select event, from_state, node, error_class from guard.circuit_breaker_events where event = 'stale_result'$$,
    $$values ('stale_result', 'half_open', 'n1', 'Late'), ('stale_result', 'half_open', 'n1', null)$$,
    'both are events that name the node'
);
select is(
    (select guard.breaker_record('k', t.token, 'ignored') from taken as t where t.name = 'second'), 'half_open',
    'a cancelled probe counts for nothing'
);
select results_eq(
    'select s.success_count, s.failure_count, s.probe_token from guard.circuit_breaker_states as s',
    'values (0, 1, null::uuid)', 'and is released'
);
select is((select a.allowed from guard.breaker_acquire('k', 3) as a), true, 'so that the next may probe');
select is(
    (select round(extract(epoch from s.probe_until - clock_timestamp())) from guard.circuit_breaker_states as s),
    3::numeric, 'under the lease that it asked for'
);
select pg_temp.later(4);
select is(
    (select guard.breaker_record('k', s.probe_token, 'success') from guard.circuit_breaker_states as s), 'half_open',
    'a result after the lease counts if nobody took it meanwhile'
);
select is((select s.success_count from guard.circuit_breaker_states as s), 1, 'it does');

select guard.set_setting('lease_seconds', '1');
select guard.breaker_acquire('k');
select is(
    (select round(extract(epoch from s.probe_until - clock_timestamp())) from guard.circuit_breaker_states as s),
    10::numeric, 'a lease is never shorter than the timeout of the operation'
);

insert into taken select 'closed' as name, a.* from guard.breaker_acquire('healthy') as a;
select guard.breaker_record('healthy', t.token, 'failure') from taken as t where t.name = 'closed';
create temporary table seen as
select s.xmin::text as version from guard.circuit_breaker_states as s where s.circuit_key = 'healthy';
savepoint s; -- noqa: PRS
select guard.breaker_acquire('healthy');
select is_empty(
    $$select s.xmin::text from guard.circuit_breaker_states as s where s.circuit_key = 'healthy'
    except select version from seen$$, 'to acquire a closed circuit writes nothing'
);
select guard.breaker_record('open', a.token, 'failure', p_failure_threshold => 1) from guard.breaker_acquire('open') as a;
truncate seen;
insert into seen select s.xmin::text from guard.circuit_breaker_states as s where s.circuit_key = 'open';
savepoint t; -- noqa: PRS
select guard.breaker_acquire('open');
select is_empty(
    $$select s.xmin::text from guard.circuit_breaker_states as s where s.circuit_key = 'open'
    except select version from seen$$, 'nor to be refused by an open one'
);

select guard.breaker_record('opens', t.token, 'failure', 'E', 'n1', 1)
from taken as t where t.name = 'closed';
select is(
    (select guard.breaker_record('opens', t.token, 'failure', 'E', 'n1', 1) from taken as t where t.name = 'closed'),
    'open', 'two calls that were let through together'
);
select is(
    (select s.generation from guard.circuit_breaker_states as s where s.circuit_key = 'opens'), 1::bigint,
    'open the circuit once'
);

select * from finish();
rollback;
