-- The circuit breaker: the state of each circuit, what became of it, and counters per minute.
set local role guard_owner;

create table if not exists guard.circuit_breaker_states (
    id bigint generated always as identity primary key,
    circuit_key text not null unique check (length(circuit_key) between 1 and 200),
    state text not null default 'closed' check (state in ('closed', 'open', 'half_open')),
    failure_count integer not null default 0 check (failure_count >= 0),
    success_count integer not null default 0 check (success_count >= 0),
    last_failure_at timestamptz,
    opened_at timestamptz,
    closed_at timestamptz,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    generation bigint not null default 0 check (generation >= 0),
    open_until timestamptz,
    probe_token uuid,
    probe_until timestamptz,
    override text check (override in ('forced_open', 'forced_closed', 'disabled')),
    override_reason text,
    override_revision bigint not null default 0,
    check ((probe_token is null) = (probe_until is null)),
    check (probe_token is null or state = 'half_open')
);

create table if not exists guard.circuit_breaker_events (
    id bigint generated always as identity primary key,
    event_id uuid not null default gen_random_uuid() unique,
    circuit_key text not null,
    event text not null check (event in ('transition', 'stale_result', 'override')),
    from_state text not null,
    to_state text not null,
    generation bigint not null,
    store text not null default 'postgresql' check (store in ('postgresql', 'redis', 'memory')),
    node text,
    error_class text,
    created_at timestamptz not null default clock_timestamp()
);

create index if not exists circuit_breaker_events_key_idx on guard.circuit_breaker_events (circuit_key, id desc);
create index if not exists circuit_breaker_events_created_at_idx on guard.circuit_breaker_events (created_at);

create table if not exists guard.circuit_breaker_metrics (
    circuit_key text not null,
    minute timestamptz not null,
    node text not null,
    successes bigint not null default 0,
    failures bigint not null default 0,
    timeouts bigint not null default 0,
    ignored bigint not null default 0,
    rejected bigint not null default 0,
    primary key (circuit_key, minute, node)
);

create index if not exists circuit_breaker_metrics_minute_idx on guard.circuit_breaker_metrics (minute);

comment on table guard.circuit_breaker_states is
'One row per circuit that ever failed, was overridden or reported counters; a circuit without a row is closed.';
comment on column guard.circuit_breaker_states.id is 'Grows with each circuit.';
comment on column guard.circuit_breaker_states.circuit_key is 'What is guarded, as in appointment_booking:service:7.';
comment on column guard.circuit_breaker_states.state is
'closed: calls pass; open: they fail at once; half_open: one probe at a time passes. An override is shown here too.';
comment on column guard.circuit_breaker_states.failure_count is 'Consecutive failures.';
comment on column guard.circuit_breaker_states.success_count is 'Consecutive successes of probes while half-open.';
comment on column guard.circuit_breaker_states.last_failure_at is 'When the last failure was recorded.';
comment on column guard.circuit_breaker_states.opened_at is
'When it last left closed; a probe that fails does not change it, so that closed_at - opened_at is the whole outage.';
comment on column guard.circuit_breaker_states.closed_at is 'When that outage ended; null while it lasts.';
comment on column guard.circuit_breaker_states.metadata is 'node and error_class of the last failure.';
comment on column guard.circuit_breaker_states.created_at is 'When this row was written first.';
comment on column guard.circuit_breaker_states.updated_at is 'When this row was written last.';
comment on column guard.circuit_breaker_states.generation is
'Grows with each change of state and never falls; a result of an earlier generation is dropped.';
comment on column guard.circuit_breaker_states.open_until is 'When the next probe may pass, computed once on opening.';
comment on column guard.circuit_breaker_states.probe_token is 'The token of the probe in flight.';
comment on column guard.circuit_breaker_states.probe_until is
'When the lease of that probe ends, whatever became of the prober; nobody extends it.';
comment on column guard.circuit_breaker_states.override is
'What an operator decided for the whole fleet: forced_open, forced_closed or disabled; null if nothing.';
comment on column guard.circuit_breaker_states.override_reason is 'Why, in the operator''s words.';
comment on column guard.circuit_breaker_states.override_revision is
'Grows with each override; the state with the higher one is the newer, whatever the generations.';

comment on table guard.circuit_breaker_events is
'What became of the circuits: transitions, overrides, and results that came too late to count.';
comment on column guard.circuit_breaker_events.id is 'Grows with each event.';
comment on column guard.circuit_breaker_events.event_id is
'Given by the node, so that an event reported twice is kept once.';
comment on column guard.circuit_breaker_events.circuit_key is 'The circuit.';
comment on column guard.circuit_breaker_events.event is 'transition, stale_result or override.';
comment on column guard.circuit_breaker_events.from_state is 'The state before.';
comment on column guard.circuit_breaker_events.to_state is 'The state after.';
comment on column guard.circuit_breaker_events.generation is 'The generation of the circuit after it.';
comment on column guard.circuit_breaker_events.store is 'Which store decided: postgresql, redis or memory.';
comment on column guard.circuit_breaker_events.node is 'Who reported it: host and process, or the application''s name.';
comment on column guard.circuit_breaker_events.error_class is 'The class of the error that the operation failed with.';
comment on column guard.circuit_breaker_events.created_at is 'When it was recorded here.';

comment on table guard.circuit_breaker_metrics is
'Counters per circuit, minute and node. Callers of the SQL functions count only what they write: no success in a healthy
circuit and no rejection.';
comment on column guard.circuit_breaker_metrics.circuit_key is 'The circuit.';
comment on column guard.circuit_breaker_metrics.minute is 'The minute, by the database''s clock.';
comment on column guard.circuit_breaker_metrics.node is 'Who counted.';
comment on column guard.circuit_breaker_metrics.successes is 'Operations that succeeded.';
comment on column guard.circuit_breaker_metrics.failures is 'Operations that failed, timeouts included.';
comment on column guard.circuit_breaker_metrics.timeouts is 'Operations that took longer than they were given.';
comment on column guard.circuit_breaker_metrics.ignored is
'Operations that were cancelled, or failed with what does not count.';
comment on column guard.circuit_breaker_metrics.rejected is
'Calls that failed at once because the circuit was not closed.';

grant select on guard.circuit_breaker_states, guard.circuit_breaker_events, guard.circuit_breaker_metrics
to guard_app, guard_operator, guard_reader, guard_monitor;
