-- closed -> open after three failures in a row -> half-open after the cooldown -> closed after two successes.
begin;
select plan(24);

create function pg_temp.try(p_outcome text) returns text language sql as $$
    select r.state
    from guard.breaker_acquire('k') as a
    cross join lateral guard.breaker_record('k', a.token, p_outcome, 'Timeout') as r
$$;
create function pg_temp.later(p_seconds numeric) returns void language sql as $$
    update guard.circuit_breaker_states
    set open_until = open_until - p_seconds * interval '1 second', probe_until = probe_until - p_seconds * interval '1 second'
$$;

select results_eq(
    'select allowed, state, generation, retry_after_seconds from guard.breaker_acquire(''k'')',
    $$values (true, 'closed', 0::bigint, null::numeric)$$, 'an unknown circuit is closed'
);
select is(pg_temp.try('success'), 'closed', 'a success keeps it so');
select is_empty('select from guard.circuit_breaker_states', 'and neither writes anything');
select is(pg_temp.try('failure'), 'closed', 'one failure');
select is(pg_temp.try('failure'), 'closed', 'two failures');
select is(pg_temp.try('success'), 'closed', 'a success between');
select is(
    (select s.failure_count from guard.circuit_breaker_states as s), 0, 'starts the count anew'
);
select is(pg_temp.try('failure'), 'closed', 'one');
select is(pg_temp.try('ignored'), 'closed', 'what is ignored does not count');
select is(pg_temp.try('failure'), 'closed', 'two');
select is(pg_temp.try('failure'), 'open', 'three in a row open it');
select results_eq(
    $$select s.failure_count, s.generation, s.opened_at is not null, s.closed_at, s.metadata ->> 'error_class'
    from guard.circuit_breaker_states as s$$,
    $$values (3, 1::bigint, true, null::timestamptz, 'Timeout')$$, 'and its row says so'
);
select results_eq(
    $$select allowed, state, token, retry_after_seconds between 29 and 30 from guard.breaker_acquire('k')$$,
    $$values (false, 'open', null::uuid, true)$$, 'open: calls fail at once, and are told when to come back'
);
select pg_temp.later(30);
select is(pg_temp.try('success'), 'half_open', 'after the cooldown a probe passes; one success is not enough');
select is(pg_temp.try('failure'), 'open', 'one failure opens it again');
select results_eq(
    'select s.generation, s.success_count, s.closed_at from guard.circuit_breaker_states as s',
    $$values (3::bigint, 0, null::timestamptz)$$, 'in a new generation'
);
select pg_temp.later(30);
select is(pg_temp.try('success'), 'half_open', 'the next probe');
select is(pg_temp.try('success'), 'closed', 'two successes in a row close it');
select results_eq(
    'select s.failure_count, s.generation, s.closed_at > s.opened_at from guard.circuit_breaker_states as s',
    $$values (0, 5::bigint, true)$$, 'and its row says so'
);
select results_eq(
    $$select from_state, to_state, generation, store, error_class from guard.circuit_breaker_events order by id$$,
    $$values ('closed', 'open', 1::bigint, 'postgresql', 'Timeout'), ('open', 'half_open', 2, 'postgresql', null),
    ('half_open', 'open', 3, 'postgresql', 'Timeout'), ('open', 'half_open', 4, 'postgresql', null),
    ('half_open', 'closed', 5, 'postgresql', 'Timeout')$$, 'every transition is an event'
);
select is(
    (select sum(m.failures) from guard.circuit_breaker_metrics as m where m.circuit_key = 'k'), 6::numeric,
    'failures are counted'
);

select guard.set_setting('failure_threshold', '1'), guard.set_setting('cooldown_seconds', '100');
select is(pg_temp.try('failure'), 'open', 'the thresholds are settings');
select results_eq(
    $$select state, round(retry_after_seconds, -1), override from guard.breaker_status('k')$$,
    $$values ('open', 100::numeric, null::text)$$, 'breaker_status shows it'
);
select is_empty($$select from guard.breaker_status('other')$$, 'and nothing else');

select * from finish();
rollback;
