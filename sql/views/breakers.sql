-- provides: view guard_bi.breaker_states
-- provides: view guard_bi.breaker_transitions
-- provides: view guard_bi.breaker_transitions_daily
-- provides: view guard_bi.breaker_outages
-- provides: view guard_bi.breaker_outages_daily
-- provides: view guard_bi.breaker_counters_daily
--
-- Circuits belong to services or staff and to no company. An outage runs from the moment a circuit left closed to the
-- moment it was closed again; what an operator forced open is none.

create or replace view guard_bi.breaker_states
with (security_invoker = true)
as
select
    s.circuit_key,
    coalesce(s.override, s.state) as status,
    s.state,
    s.override,
    s.failure_count,
    s.success_count,
    s.last_failure_at,
    (s.last_failure_at at time zone z.value)::date as last_failure_date,
    s.opened_at,
    (s.opened_at at time zone z.value)::date as opened_date,
    s.closed_at,
    (s.closed_at at time zone z.value)::date as closed_date,
    s.updated_at,
    (s.updated_at at time zone z.value)::date as updated_date
from guard.circuit_breaker_states as s
cross join guard.settings as z
where z.name = 'app_timezone';

comment on view guard_bi.breaker_states is 'Every circuit that ever failed, was overridden or reported counters.';
comment on column guard_bi.breaker_states.circuit_key is 'What is guarded, as in appointment_booking:service:7.';
comment on column guard_bi.breaker_states.status is
'What calls meet: closed, open, half_open, or what an operator forced.';
comment on column guard_bi.breaker_states.state is 'closed, open or half_open.';
comment on column guard_bi.breaker_states.override is 'forced_open, forced_closed or disabled; null if nothing.';
comment on column guard_bi.breaker_states.failure_count is 'Consecutive failures.';
comment on column guard_bi.breaker_states.success_count is 'Consecutive successes of probes while half-open.';
comment on column guard_bi.breaker_states.last_failure_at is 'When the last failure was recorded.';
comment on column guard_bi.breaker_states.last_failure_date is 'The day of last_failure_at, in settings.app_timezone.';
comment on column guard_bi.breaker_states.opened_at is 'When it last left closed.';
comment on column guard_bi.breaker_states.opened_date is 'The day of opened_at, in settings.app_timezone.';
comment on column guard_bi.breaker_states.closed_at is 'When that outage ended; null while it lasts.';
comment on column guard_bi.breaker_states.closed_date is 'The day of closed_at, in settings.app_timezone.';
comment on column guard_bi.breaker_states.updated_at is 'When it changed last.';
comment on column guard_bi.breaker_states.updated_date is 'The day of updated_at, in settings.app_timezone.';

grant select on guard_bi.breaker_states to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.breaker_transitions
with (security_invoker = true)
as
select
    e.id as event_id,
    e.circuit_key,
    e.event,
    e.from_state,
    e.to_state,
    e.store,
    e.node,
    e.error_class,
    e.created_at as recorded_at,
    (e.created_at at time zone z.value)::date as recorded_date
from guard.circuit_breaker_events as e
cross join guard.settings as z
where z.name = 'app_timezone';

comment on view guard_bi.breaker_transitions is
'What became of the circuits: changes of state, overrides, and results that came too late.';
comment on column guard_bi.breaker_transitions.event_id is 'The event.';
comment on column guard_bi.breaker_transitions.circuit_key is 'The circuit.';
comment on column guard_bi.breaker_transitions.event is 'transition, stale_result or override.';
comment on column guard_bi.breaker_transitions.from_state is 'The state before.';
comment on column guard_bi.breaker_transitions.to_state is 'The state after.';
comment on column guard_bi.breaker_transitions.store is 'Which store decided: postgresql, redis or memory.';
comment on column guard_bi.breaker_transitions.node is 'Who reported it.';
comment on column guard_bi.breaker_transitions.error_class is 'The class of the error that the operation failed with.';
comment on column guard_bi.breaker_transitions.recorded_at is 'When it was recorded.';
comment on column guard_bi.breaker_transitions.recorded_date is 'The day of recorded_at, in settings.app_timezone.';

grant select on guard_bi.breaker_transitions to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.breaker_transitions_daily
with (security_invoker = true)
as
select
    t.recorded_date,
    t.circuit_key,
    t.event,
    t.from_state,
    t.to_state,
    count(*) as transitions
from guard_bi.breaker_transitions as t
group by t.recorded_date, t.circuit_key, t.event, t.from_state, t.to_state;

comment on view guard_bi.breaker_transitions_daily is
'What became of the circuits, one row per day, circuit, event, state before and state after.';
comment on column guard_bi.breaker_transitions_daily.recorded_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.breaker_transitions_daily.circuit_key is 'The circuit.';
comment on column guard_bi.breaker_transitions_daily.event is 'transition, stale_result or override.';
comment on column guard_bi.breaker_transitions_daily.from_state is 'The state before.';
comment on column guard_bi.breaker_transitions_daily.to_state is 'The state after.';
comment on column guard_bi.breaker_transitions_daily.transitions is 'How many of them.';

grant select on guard_bi.breaker_transitions_daily to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.breaker_outages
with (security_invoker = true)
as
select
    e.circuit_key,
    o.created_at as opened_at,
    (o.created_at at time zone z.value)::date as opened_date,
    e.created_at as closed_at,
    (e.created_at at time zone z.value)::date as closed_date,
    greatest(extract(epoch from e.created_at - o.created_at), 0) as duration_seconds
from guard.circuit_breaker_events as e
cross join guard.settings as z
cross join
    lateral (
        select b.created_at
        from guard.circuit_breaker_events as b
        where
            b.circuit_key = e.circuit_key and b.id < e.id
            and b.event = 'transition' and b.from_state = 'closed' and b.to_state = 'open'
        order by b.id desc
        limit 1
    ) as o
where
    z.name = 'app_timezone'
    and e.event <> 'stale_result'
    and e.from_state::text = any('{open,half_open}')
    and e.to_state::text = any('{closed,forced_closed,disabled}');

comment on view guard_bi.breaker_outages is 'Every outage of a circuit that has ended.';
comment on column guard_bi.breaker_outages.circuit_key is 'The circuit.';
comment on column guard_bi.breaker_outages.opened_at is 'When it left closed.';
comment on column guard_bi.breaker_outages.opened_date is 'The day of opened_at, in settings.app_timezone.';
comment on column guard_bi.breaker_outages.closed_at is 'When it was closed again.';
comment on column guard_bi.breaker_outages.closed_date is 'The day of closed_at, in settings.app_timezone.';
comment on column guard_bi.breaker_outages.duration_seconds is 'How long it lasted, in seconds.';

grant select on guard_bi.breaker_outages to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.breaker_outages_daily
with (security_invoker = true)
as
select
    o.closed_date,
    o.circuit_key,
    count(*) as outages,
    round(avg(o.duration_seconds), 3) as mean_seconds,
    round(max(o.duration_seconds), 3) as max_seconds
from guard_bi.breaker_outages as o
group by o.closed_date, o.circuit_key;

comment on view guard_bi.breaker_outages_daily is 'Outages by the day of their end, one row per day and circuit.';
comment on column guard_bi.breaker_outages_daily.closed_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.breaker_outages_daily.circuit_key is 'The circuit.';
comment on column guard_bi.breaker_outages_daily.outages is 'How many outages ended.';
comment on column guard_bi.breaker_outages_daily.mean_seconds is 'How long they lasted on average, in seconds.';
comment on column guard_bi.breaker_outages_daily.max_seconds is 'How long the longest lasted, in seconds.';

grant select on guard_bi.breaker_outages_daily to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.breaker_counters_daily
with (security_invoker = true)
as
select
    m.counted_date,
    m.circuit_key,
    sum(m.successes) as successes,
    sum(m.failures) as failures,
    sum(m.timeouts) as timeouts,
    sum(m.ignored) as ignored,
    sum(m.rejected) as rejected
from (
    select c.*, (c.minute at time zone z.value)::date as counted_date
    from guard.circuit_breaker_metrics as c
    cross join guard.settings as z
    where z.name = 'app_timezone'
) as m
group by m.counted_date, m.circuit_key;

comment on view guard_bi.breaker_counters_daily is 'What passed the circuits, one row per day and circuit.';
comment on column guard_bi.breaker_counters_daily.counted_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.breaker_counters_daily.circuit_key is 'The circuit.';
comment on column guard_bi.breaker_counters_daily.successes is 'Operations that succeeded.';
comment on column guard_bi.breaker_counters_daily.failures is 'Operations that failed, timeouts included.';
comment on column guard_bi.breaker_counters_daily.timeouts is 'Operations that took longer than they were given.';
comment on column guard_bi.breaker_counters_daily.ignored is
'Operations that were cancelled, or failed with what does not count.';
comment on column guard_bi.breaker_counters_daily.rejected is
'Calls that failed at once because the circuit was not closed.';

grant select on guard_bi.breaker_counters_daily to guard_operator, guard_reader, guard_monitor;
