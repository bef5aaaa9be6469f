-- provides: function guard.breaker_key(bigint, bigint)
-- provides: function guard.breaker_number(text)
-- provides: function guard.breaker_ticket(bigint)
-- provides: function guard.breaker_check_key(text)
-- provides: function guard.breaker_node()
-- provides: function guard.breaker_lock(text)
-- provides: function guard.breaker_event(text, text, text, text, bigint, text, text)
-- provides: function guard.breaker_count(text, text, text)
--
-- What the functions of the circuit breaker are made of. Called by them alone, but for breaker_key.
-- Raises ZG201 for what cannot be a key. Locks: breaker_lock, the circuit's row.

create or replace function guard.breaker_key(p_service_id bigint = null, p_staff_id bigint = null)
returns text
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select 'appointment_booking:' || case
        when p_staff_id is not null and guard.setting('per_staff')::boolean then 'staff:' || p_staff_id
        when p_service_id is not null and guard.setting('per_service')::boolean then 'service:' || p_service_id
        else 'global'
    end
$$;

comment on function guard.breaker_key(bigint, bigint) is
'The circuit that a booking belongs to, by the settings per_staff and per_service.';

grant execute on function guard.breaker_key(bigint, bigint) to guard_app;

create or replace function guard.breaker_number(p_setting text)
returns numeric
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select s.value::numeric from guard.settings as s where s.name = p_setting
$$;

comment on function guard.breaker_number(text) is 'A setting of the circuit breaker as a number.';

-- What a call through a closed circuit gets instead of a lease: its generation, written as a uuid. Nothing need be
-- stored for it, and it is the same in every store. A random uuid never begins with 64 zero bits.
create or replace function guard.breaker_ticket(p_generation bigint)
returns uuid
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.lpad(pg_catalog.to_hex(p_generation), 32, '0')::uuid
$$;

comment on function guard.breaker_ticket(bigint) is 'The token of calls that pass a closed circuit.';

create or replace function guard.breaker_check_key(p_key text)
returns void
language plpgsql
immutable
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_key is null or p_key ~ '^\s*$' or length(p_key) > 200 then
        raise exception using
            errcode = 'ZG201',
            message = case
                when p_key is null then 'the key of a circuit is null'
                when length(p_key) > 200 then format('the key of a circuit has %s characters', length(p_key))
                else 'the key of a circuit is empty'
            end,
            hint = 'Use 1 to 200 characters, as in appointment_booking:service:7.';
    end if;
end
$$;

comment on function guard.breaker_check_key(text) is 'Refuse what cannot be the key of a circuit.';

create or replace function guard.breaker_node()
returns text
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws('@', coalesce(nullif(current_setting('application_name'), ''), 'sql'), host(inet_client_addr()))
$$;

comment on function guard.breaker_node() is 'Who reports, for callers that do not say: application and address.';

-- The circuit's row, locked; made if there is none.
create or replace function guard.breaker_lock(p_key text)
returns guard.circuit_breaker_states
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_breaker guard.circuit_breaker_states;
begin
    select s.* into v_breaker from guard.circuit_breaker_states as s where s.circuit_key = p_key for no key update;
    if not found then
        insert into guard.circuit_breaker_states (circuit_key) values (p_key) on conflict do nothing;
        select s.* into v_breaker from guard.circuit_breaker_states as s where s.circuit_key = p_key for no key update;
    end if;
    return v_breaker;
end
$$;

comment on function guard.breaker_lock(text) is 'Lock the row of a circuit; make it if there is none.';

create or replace function guard.breaker_event(
    p_key text, p_event text, p_from text, p_to text, p_generation bigint, p_node text, p_error text
)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    insert into guard.circuit_breaker_events (
        circuit_key, event, from_state, to_state, generation, node, error_class
    )
    values (
        p_key, p_event, p_from, p_to, p_generation,
        left(coalesce(p_node, guard.breaker_node()), 200), left(p_error, 200)
    )
$$;

comment on function guard.breaker_event(text, text, text, text, bigint, text, text) is
'Keep what became of a circuit.';

create or replace function guard.breaker_count(p_key text, p_node text, p_outcome text)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    insert into guard.circuit_breaker_metrics as m (circuit_key, minute, node, successes, failures, ignored)
    values (
        p_key, date_trunc('minute', clock_timestamp()), left(coalesce(p_node, guard.breaker_node()), 200),
        (p_outcome = 'success')::integer, (p_outcome = 'failure')::integer, (p_outcome = 'ignored')::integer
    )
    on conflict (circuit_key, minute, node) do update set
        successes = m.successes + excluded.successes,
        failures = m.failures + excluded.failures,
        ignored = m.ignored + excluded.ignored
$$;

comment on function guard.breaker_count(text, text, text) is 'Count an outcome in its minute.';
