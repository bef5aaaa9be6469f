-- What another store knows is taken over if it is newer; generations never fall.
begin;
select plan(17);

create function pg_temp.snapshot(p_fields jsonb) returns jsonb language sql as $$
    select '{"state": "closed", "generation": 0, "override_revision": 0}' || p_fields
$$;
select is(
    guard.breaker_merge('k', pg_temp.snapshot('{"state": "open", "generation": 5, "failure_count": 3, "open_for": 20}'))
    -> 'generation', '5', 'a higher generation is taken over'
);
select results_eq(
    $$select allowed, state, generation, retry_after_seconds between 19 and 20 from guard.breaker_acquire('k')$$,
    $$values (false, 'open', 5::bigint, true)$$, 'with the rest of its cooldown'
);
select is(
    guard.breaker_merge('k', pg_temp.snapshot('{"generation": 4}')) ->> 'state', 'open', 'a lower one is not'
);
select is(
    guard.breaker_merge('k', pg_temp.snapshot('{"generation": 5}')) ->> 'state', 'open', 'nor the same one'
);
select is(
    guard.breaker_merge(
        'k', pg_temp.snapshot('{"override": "disabled", "override_reason": "test", "override_revision": 1}')
    ) - array['closed_ago', 'failed_ago', 'opened_ago', 'open_for', 'probe_for'],
    '{"state": "closed", "generation": 6, "failure_count": 0, "success_count": 0, "probe_token": null,
    "override": "disabled", "override_reason": "test", "override_revision": 1}'::jsonb,
    'an override is newer whatever its generation, and the generation grows all the same'
);
select results_eq(
    $$select reason, after ->> 'override' from guard.audit_log where action = 'breaker_override'$$,
    $$values ('test', 'disabled')$$, 'it is audited'
);
select is(
    guard.breaker_merge('k', pg_temp.snapshot('{"state": "open", "generation": 50}')) ->> 'override', 'disabled',
    'who does not know of the override does not lift it'
);

select guard.breaker_merge('p', pg_temp.snapshot(
    '{"state": "half_open", "generation": 2, "probe_token": "a0000000-0000-4000-8000-000000000000", "probe_for": 10}'
));
select is(
    (select a.allowed from guard.breaker_acquire('p') as a), false, 'a probe that another store let through is known'
);
select is(
    guard.breaker_merge('p', pg_temp.snapshot(
        '{"state": "half_open", "generation": 2, "probe_token": "b0000000-0000-4000-8000-000000000000",
        "probe_for": 9}'
    )) ->> 'probe_token', 'a0000000-0000-4000-8000-000000000000', 'the probe that was known first stays'
);
select is(
    guard.breaker_merge(
        'p', pg_temp.snapshot('{"state": "half_open", "generation": 2, "success_count": 1}'),
        'b0000000-0000-4000-8000-000000000000'
    ) ->> 'probe_token', 'a0000000-0000-4000-8000-000000000000', 'to release another probe does not end it'
);
select results_eq(
    $$select x ->> 'probe_token', x ->> 'success_count' from guard.breaker_merge(
        'p', pg_temp.snapshot('{"state": "half_open", "generation": 2}'), 'a0000000-0000-4000-8000-000000000000'
    ) as x$$, $$values (null::text, '1')$$, 'to release it does'
);
select is((select a.allowed from guard.breaker_acquire('p') as a), true, 'then another may probe');
select is(
    guard.breaker_record('p', 'a0000000-0000-4000-8000-000000000000', 'failure'), 'half_open',
    'and the result of the first is late'
);

select guard.breaker_report(
    '[{"event_id": "00000000-0000-4000-8000-000000000001", "circuit_key": "r", "event": "transition",
    "from_state": "closed", "to_state": "open", "generation": 1, "store": "redis", "error_class": "E", "ago": 5}]',
    '[{"circuit_key": "r", "successes": 5, "rejected": 2}, {"circuit_key": "healthy", "successes": 1}]', 'n1'
);
select lives_ok($$
    select guard.breaker_report(
        '[{"event_id": "00000000-0000-4000-8000-000000000001", "circuit_key": "r", "event": "transition",
        "from_state": "closed", "to_state": "open", "generation": 1, "store": "redis", "error_class": "E", "ago": 5}]',
        '[{"circuit_key": "r", "successes": 1}]', 'n1'
    )$$, 'a report that is repeated');
select is(
    (select count(*) from guard.circuit_breaker_events as e where e.circuit_key = 'r' and e.node = 'n1'), 1::bigint,
    'keeps its events once'
);
select results_eq(
    $$select sum(successes), sum(rejected) from guard.circuit_breaker_metrics where circuit_key = 'r'$$,
    'values (6::numeric, 2::numeric)', 'counters add up'
);
select results_eq(
    $$select state from guard.breaker_status('healthy')$$, array['closed'], 'a circuit that only counts is shown too'
);

select * from finish();
rollback;
