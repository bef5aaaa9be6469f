-- An override holds for the whole fleet, whatever the results, and is audited.
begin;
select plan(22);

create function pg_temp.try(p_outcome text) returns text language sql as $$
    select guard.breaker_record('k', (select a.token from guard.breaker_acquire('k') as a), p_outcome)
$$;

create temporary table early as select a.token from guard.breaker_acquire('k') as a;
select is(
    (select o.state from guard.breaker_override('k', 'forced_open', 'maintenance') as o), 'forced_open', 'forced open'
);
select results_eq(
    $$select allowed, state, generation, retry_after_seconds from guard.breaker_acquire('k')$$,
    $$values (false, 'forced_open', 1::bigint, 30::numeric)$$, 'nothing passes'
);
select results_eq(
    $$select state, override, retry_after_seconds from guard.breaker_status('k')$$,
    $$values ('open', 'forced_open', null::numeric)$$, 'and it does not end by itself'
);
update guard.circuit_breaker_states set opened_at = opened_at - interval '1 day';
select is((select a.allowed from guard.breaker_acquire('k') as a), false, 'however long it lasts');
select results_eq(
    $$select circuit_key, state from guard.circuit_breaker_states where state != 'closed'$$,
    $$values ('k', 'open')$$, 'those who look for open circuits find it'
);
select is((select guard.breaker_record('k', e.token, 'failure') from early as e), 'forced_open', 'an earlier result');
select isnt_empty(
    $$select from guard.circuit_breaker_events where event = 'stale_result' and from_state = 'forced_open'$$,
    'does not count'
);

select is(guard.breaker_override('k', 'forced_closed', 'we need it'), 'forced_closed', 'forced closed');
select is((select a.allowed from guard.breaker_acquire('k') as a), true, 'everything passes');
select is((select min(pg_temp.try('failure')) from generate_series(1, 5)), 'forced_closed', 'however often it fails');
select is((select s.failure_count from guard.circuit_breaker_states as s), 0, 'and nothing is counted');
select is(guard.breaker_override('k', 'disabled', 'a test'), 'disabled', 'disabled');
select is(pg_temp.try('failure'), 'disabled', 'the same');

select is(guard.breaker_override('k', 'none', 'over'), 'closed', 'lifted: closed');
select is((select min(pg_temp.try('failure')) from generate_series(1, 2)), 'closed', 'it counts');
select is(pg_temp.try('failure'), 'open', 'and opens again');
select is(guard.breaker_override('k', 'none', 'mended'), 'closed', 'none resets a circuit that is open by itself');
select results_eq(
    $$select action, object, reason, after ->> 'override' from guard.audit_log
    where action = 'breaker_override' order by id$$,
    $$values ('breaker_override', 'k', 'maintenance', 'forced_open'),
    ('breaker_override', 'k', 'we need it', 'forced_closed'), ('breaker_override', 'k', 'a test', 'disabled'),
    ('breaker_override', 'k', 'over', null), ('breaker_override', 'k', 'mended', null)$$, 'each is audited'
);
select is(
    (select count(*) from guard.circuit_breaker_events as e where e.event = 'override'), 5::bigint, 'and an event'
);

create role guard_test_application nologin;
grant guard_app to guard_test_application;
set local role guard_test_application;
select lives_ok($$select pg_temp.try('failure')$$, 'an application may run the breaker');
select throws_ok(
    $$select guard.breaker_override('k', 'none', 'x')$$, '42501', null, 'it may not override it'
);
select throws_ok(
    $$update guard.circuit_breaker_states set state = 'closed'$$, '42501', null, 'nor write its tables'
);

select * from finish();
rollback;
