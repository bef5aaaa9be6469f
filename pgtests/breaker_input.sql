-- Bad input is a clear error; text is text.
begin;
select plan(21);

select throws_ok('select guard.breaker_acquire(null)', 'ZG201', null, 'no key');
select throws_ok($$select guard.breaker_acquire('')$$, 'ZG201', null, 'an empty key');
select throws_ok($$select guard.breaker_acquire(E' \n\t')$$, 'ZG201', null, 'a blank key');
select throws_ok($$select guard.breaker_acquire(repeat('x', 10000))$$, 'ZG201', null, 'a key of 10,000 characters');
select throws_ok($$select guard.breaker_record(null, gen_random_uuid(), 'success')$$, 'ZG201', null, 'no key here');
select throws_ok($$select guard.breaker_override(repeat('x', 201), 'none', 'r')$$, 'ZG201', null, 'nor to override');
select throws_ok($$select guard.breaker_merge('', '{}')$$, 'ZG201', null, 'nor to merge');
select lives_ok($$select guard.breaker_acquire(repeat('x', 200))$$, '200 characters are fine');

select throws_ok(
    $$select guard.breaker_record('k', guard.breaker_ticket(0), 'great')$$, 'ZG202', null, 'an unknown outcome'
);
select throws_ok($$select guard.breaker_record('k', guard.breaker_ticket(0), null)$$, 'ZG202', null, 'no outcome');
select throws_ok($$select guard.breaker_record('k', null, 'success')$$, 'ZG203', null, 'no token');
select throws_ok(
    $$select guard.breaker_record('k', gen_random_uuid(), 'success')$$, 'ZG204', null, 'a token out of the air'
);
select throws_ok(
    $$select guard.breaker_record('k', guard.breaker_ticket(7), 'failure')$$, 'ZG204', null, 'a token of the future'
);
select throws_ok($$select guard.breaker_override('k', 'ajar', 'r')$$, 'ZG205', null, 'an unknown override');
select throws_ok($$select guard.breaker_override('k', null, 'r')$$, 'ZG205', null, 'no override');
select throws_ok($$select guard.breaker_override('k', 'forced_open', ' ')$$, 'ZG206', null, 'no reason');
select throws_ok($$select guard.breaker_merge('k', '{"state": "open"}')$$, 'ZG207', null, 'half a snapshot');
select throws_ok($$select guard.breaker_report('{}', '[]', 'n')$$, 'ZG207', null, 'a report that is none');
select is_empty('select from guard.circuit_breaker_states', 'nothing was written');

select guard.breaker_record(k.key, a.token, 'failure', repeat('x', 1000000), null, 1)
from (select $$'); drop table guard.circuit_breaker_states; --$$ as key) as k
cross join lateral guard.breaker_acquire(k.key) as a;
select results_eq(
    'select circuit_key, state from guard.circuit_breaker_states',
    $$values ($k$'); drop table guard.circuit_breaker_states; --$k$, 'open')$$, 'SQL in a key is a key'
);
select is(
    (select max(length(e.error_class)) from guard.circuit_breaker_events as e), 200, 'an error of a megabyte is cut'
);

select * from finish();
rollback;
