-- provides: function guard.breaker_acquire(text, numeric)
-- provides: function guard.breaker_step(guard.circuit_breaker_states, text, integer, integer, numeric)
-- provides: function guard.breaker_record(text, uuid, text, text, text, integer, integer, numeric)
-- provides: function guard.breaker_override(text, text, text)
-- provides: function guard.breaker_status(text)
--
-- The circuit breaker, complete in SQL, for applications in any language:
--
--     select * from guard.breaker_acquire('appointment_booking:service:7');   -- allowed? keep the token
--     ... call the remote side ...
--     select * from guard.breaker_record('appointment_booking:service:7', :token, 'success');  -- or failure, ignored
--
-- closed -> open after failure_threshold consecutive failures -> half_open after cooldown_seconds, one probe at a time
-- -> closed after success_threshold successes, or open again after one failure. Thresholds are settings.
--
-- Call each in a transaction of its own (autocommit, READ COMMITTED): what a caller rolls back is not recorded, and a
-- caller that keeps its transaction open keeps the circuit's row locked. No session state: PgBouncer may stand between.
-- Time is clock_timestamp() of this server. Locks: one row per circuit. In a healthy circuit acquire and a success only
-- read; in an open one acquire only reads; whoever would be the second to probe is turned away without waiting.
-- Every entry is security definer: applications change a circuit only by the rules of the state machine.
-- Raises ZG201 (key), ZG202 (outcome), ZG203 (token missing), ZG204 (token never given out), ZG205 (override),
-- ZG206 (reason missing).

-- Admission. Reads only, but for the one caller that becomes the probe: it takes the lease, and the others are turned
-- away without waiting for its transaction. retry_after_seconds is null where the call is allowed.
create or replace function guard.breaker_acquire(p_key text, p_lease_seconds numeric = null)
returns table (allowed boolean, state text, token uuid, generation bigint, retry_after_seconds numeric)
language plpgsql
volatile
security definer -- takes the lease on behalf of an application that may not write the table
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_lease numeric;
    v_seen guard.circuit_breaker_states;
    v_mine guard.circuit_breaker_states;
begin
    perform guard.breaker_check_key(p_key);
    select s.* into v_seen from guard.circuit_breaker_states as s where s.circuit_key = p_key;
    if not found then
        return query select true, 'closed', guard.breaker_ticket(0), 0::bigint, null::numeric;
        return;
    elsif v_seen.override = 'forced_open' then
        return query select
            false, v_seen.override, null::uuid, v_seen.generation, guard.breaker_number('cooldown_seconds');
        return;
    elsif v_seen.override is not null or v_seen.state = 'closed' then
        return query select
            true, coalesce(v_seen.override, 'closed'), guard.breaker_ticket(v_seen.generation), v_seen.generation,
            null::numeric;
        return;
    elsif v_seen.state = 'open' and v_seen.open_until > v_now then
        return query select
            false, 'open', null::uuid, v_seen.generation,
            round(extract(epoch from v_seen.open_until - v_now), 3);
        return;
    end if;

    if v_seen.probe_until is null or v_seen.probe_until <= v_now then
        select s.* into v_mine
        from guard.circuit_breaker_states as s
        where
            s.id = v_seen.id
            and s.generation = v_seen.generation
            and (s.probe_until is null or s.probe_until <= v_now)
        for no key update skip locked;
    end if;
    if v_mine.id is null then
        -- somebody probes: how it ends is known within the lease, and mostly much sooner
        return query select
            false, 'half_open', null::uuid, v_seen.generation,
            round(least(1, coalesce(extract(epoch from v_seen.probe_until - v_now), 1)), 3);
        return;
    end if;

    v_lease := coalesce(
        p_lease_seconds,
        greatest(guard.breaker_number('lease_seconds'), guard.breaker_number('timeout_seconds'))
    );
    update guard.circuit_breaker_states as s
    set
        state = 'half_open',
        generation = s.generation + (s.state = 'open')::integer,
        success_count = case s.state when 'open' then 0 else s.success_count end,
        open_until = null,
        probe_token = gen_random_uuid(),
        probe_until = v_now + v_lease * interval '1 second',
        updated_at = v_now
    where s.id = v_mine.id
    returning s.* into v_mine;
    if v_seen.state = 'open' then
        perform guard.breaker_event(p_key, 'transition', 'open', 'half_open', v_mine.generation, null, null);
    end if;
    return query select true, 'half_open', v_mine.probe_token, v_mine.generation, null::numeric;
end
$$;

comment on function guard.breaker_acquire(text, numeric) is
'May a call pass this circuit? Keep the token for breaker_record. The lease of a probe can be given in seconds.';

grant execute on function guard.breaker_acquire(text, numeric) to guard_app;

-- The state machine: the row after an outcome that counts. Pure but for the clock.
create or replace function guard.breaker_step(
    p_before guard.circuit_breaker_states,
    p_outcome text,
    p_failure_threshold integer,
    p_success_threshold integer,
    p_cooldown_seconds numeric
)
returns guard.circuit_breaker_states
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := clock_timestamp();
    v_after guard.circuit_breaker_states := p_before;
begin
    v_after.updated_at := v_now;
    v_after.probe_token := null;
    v_after.probe_until := null;
    if p_outcome = 'failure' then
        v_after.failure_count := p_before.failure_count + 1;
        v_after.last_failure_at := v_now;
        if p_before.state = 'half_open' or v_after.failure_count >= p_failure_threshold then
            v_after.state := 'open';
            v_after.open_until := v_now + p_cooldown_seconds * interval '1 second';
            v_after.success_count := 0;
            if p_before.state = 'closed' then
                v_after.opened_at := v_now;
                v_after.closed_at := null;
            end if;
        end if;
    elsif p_outcome = 'success' and p_before.state = 'closed' then
        v_after.failure_count := 0;
    elsif p_outcome = 'success' then
        v_after.success_count := p_before.success_count + 1;
        if v_after.success_count >= p_success_threshold then
            v_after.state := 'closed';
            v_after.failure_count := 0;
            v_after.closed_at := v_now;
        end if;
    end if;
    v_after.generation := p_before.generation + (v_after.state <> p_before.state)::integer;
    return v_after;
end
$$;

comment on function guard.breaker_step(guard.circuit_breaker_states, text, integer, integer, numeric) is
'The state machine of the circuit breaker: what a circuit is after an outcome.';

-- Records the outcome of a call that breaker_acquire allowed, and returns the state after it. A result of an earlier
-- generation, or of a probe whose lease went to another, changes nothing and becomes a stale_result event.
create or replace function guard.breaker_record(
    p_key text,
    p_token uuid,
    p_outcome text,
    p_error text = null,
    p_node text = null,
    p_failure_threshold integer = null,
    p_success_threshold integer = null,
    p_cooldown_seconds numeric = null,
    out state text
)
returns text
language plpgsql
volatile
security definer -- moves the state machine on behalf of an application that may not write the table
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.circuit_breaker_states;
    v_after guard.circuit_breaker_states;
    v_is_ticket boolean;
begin
    perform guard.breaker_check_key(p_key);
    if p_outcome is null or p_outcome not in ('success', 'failure', 'ignored') then
        raise exception using
            errcode = 'ZG202',
            message = format('%s is not an outcome', coalesce(quote_literal(left(p_outcome, 60)), 'null')),
            hint = 'Use success, failure or ignored.';
    end if;
    if p_token is null then
        raise exception using
            errcode = 'ZG203',
            message = 'the token is null',
            hint = 'Record only calls that guard.breaker_acquire allowed, with the token that it gave.';
    end if;

    select s.* into v_before from guard.circuit_breaker_states as s where s.circuit_key = p_key;
    v_is_ticket := p_token::text like '00000000-0000-0000-%';
    if
        p_token = guard.breaker_ticket(coalesce(v_before.generation, 0))
        and (
            v_before.override is not null
            or p_outcome = 'ignored'
            or (p_outcome = 'success' and coalesce(v_before.failure_count, 0) = 0)
        )
    then
        state := coalesce(v_before.override, v_before.state, 'closed'); -- there is nothing to record
        return;
    end if;
    if (v_is_ticket and p_token > guard.breaker_ticket(coalesce(v_before.generation, 0)))
        or (not v_is_ticket and v_before.id is null) then
        raise exception using
            errcode = 'ZG204',
            message = 'this circuit never gave out such a token',
            detail = format('Circuit %s.', p_key),
            hint = 'Use the token that guard.breaker_acquire gave for the same key.';
    end if;

    v_before := guard.breaker_lock(p_key);
    if v_before.override is not null and p_token = guard.breaker_ticket(v_before.generation) then
        state := v_before.override;
        return;
    end if;
    if p_token is distinct from coalesce(v_before.probe_token, guard.breaker_ticket(v_before.generation))
        or (v_is_ticket and v_before.state <> 'closed') then
        perform guard.breaker_event(
            p_key, 'stale_result', coalesce(v_before.override, v_before.state),
            coalesce(v_before.override, v_before.state), v_before.generation, p_node, p_error
        );
        state := coalesce(v_before.override, v_before.state);
        return;
    end if;

    v_after := guard.breaker_step(
        v_before, p_outcome,
        coalesce(p_failure_threshold, guard.breaker_number('failure_threshold')::integer),
        coalesce(p_success_threshold, guard.breaker_number('success_threshold')::integer),
        coalesce(p_cooldown_seconds, guard.breaker_number('cooldown_seconds'))
    );
    update guard.circuit_breaker_states as s
    set
        state = v_after.state,
        generation = v_after.generation,
        failure_count = v_after.failure_count,
        success_count = v_after.success_count,
        last_failure_at = v_after.last_failure_at,
        opened_at = v_after.opened_at,
        closed_at = v_after.closed_at,
        open_until = v_after.open_until,
        probe_token = v_after.probe_token,
        probe_until = v_after.probe_until,
        metadata = case
            when p_outcome = 'failure' then s.metadata || jsonb_build_object(
                'node', left(coalesce(p_node, guard.breaker_node()), 200), 'error_class', left(p_error, 200)
            )
            else s.metadata
        end,
        updated_at = v_after.updated_at
    where s.id = v_before.id;
    if p_node is null then
        perform guard.breaker_count(p_key, null, p_outcome); -- a client that names its node reports its own counters
    end if;
    if v_after.state <> v_before.state then
        perform guard.breaker_event(
            p_key, 'transition', v_before.state, v_after.state, v_after.generation, p_node, p_error
        );
    end if;
    state := v_after.state;
end
$$;

comment on function guard.breaker_record(text, uuid, text, text, text, integer, integer, numeric) is
'Record what became of a call: success, failure or ignored (cancelled by the caller). Returns the state.';

grant execute on function guard.breaker_record(text, uuid, text, text, text, integer, integer, numeric) to guard_app;

-- An operator's decision for the whole fleet. It starts a new generation: results of calls that are under way no longer
-- count. none lifts it and starts afresh, closed; without an override it resets the circuit.
create or replace function guard.breaker_override(p_key text, p_state text, p_reason text, out state text)
returns text
language plpgsql
volatile
security definer -- operators may override a circuit only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.circuit_breaker_states;
    v_after guard.circuit_breaker_states;
begin
    perform guard.breaker_check_key(p_key);
    if p_state is null or p_state not in ('forced_open', 'forced_closed', 'disabled', 'none') then
        raise exception using
            errcode = 'ZG205',
            message = format('%s is not an override', coalesce(quote_literal(left(p_state, 60)), 'null')),
            hint = 'Use forced_open, forced_closed, disabled, or none to lift it.';
    end if;
    if p_reason is null or p_reason ~ '^\s*$' then
        raise exception using
            errcode = 'ZG206',
            message = 'an override needs a reason',
            hint = 'Say in a few words why: it is kept in guard.audit_log.';
    end if;
    v_before := guard.breaker_lock(p_key);
    update guard.circuit_breaker_states as s
    set
        state = case p_state when 'forced_open' then 'open' else 'closed' end,
        generation = s.generation + 1,
        failure_count = 0,
        success_count = 0,
        opened_at = case
            when p_state = 'forced_open' and s.state = 'closed' then clock_timestamp()
            else s.opened_at
        end,
        closed_at = case
            when p_state = 'forced_open' then null
            when s.state <> 'closed' then clock_timestamp()
            else s.closed_at
        end,
        open_until = null,
        probe_token = null,
        probe_until = null,
        override = nullif(p_state, 'none'),
        override_reason = case when p_state <> 'none' then left(p_reason, 1000) end,
        override_revision = s.override_revision + 1,
        updated_at = clock_timestamp()
    where s.id = v_before.id
    returning s.* into v_after;
    perform guard.breaker_event(
        p_key, 'override', coalesce(v_before.override, v_before.state), coalesce(v_after.override, v_after.state),
        v_after.generation, null, null
    );
    insert into guard.audit_log (action, object, reason, before, after)
    values (
        'breaker_override', p_key, left(p_reason, 1000),
        jsonb_build_object('state', v_before.state, 'override', v_before.override, 'generation', v_before.generation),
        jsonb_build_object('state', v_after.state, 'override', v_after.override, 'generation', v_after.generation)
    );
    state := coalesce(v_after.override, v_after.state);
end
$$;

comment on function guard.breaker_override(text, text, text) is
'Force a circuit open or closed, disable it, or lift that (none), for the whole fleet; audited.';

grant execute on function guard.breaker_override(text, text, text) to guard_operator;

create or replace function guard.breaker_status(p_key text = null)
returns table (
    circuit_key text,
    state text,
    failure_count integer,
    success_count integer,
    last_failure_at timestamptz,
    opened_at timestamptz,
    closed_at timestamptz,
    generation bigint,
    retry_after_seconds numeric,
    probing boolean,
    override text,
    override_reason text,
    metadata jsonb,
    updated_at timestamptz
)
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select
        s.circuit_key,
        s.state,
        s.failure_count,
        s.success_count,
        s.last_failure_at,
        s.opened_at,
        s.closed_at,
        s.generation,
        case
            when s.state = 'open' and s.override is null
                then round(greatest(0, extract(epoch from s.open_until - clock_timestamp())), 3)
        end,
        coalesce(s.probe_until > clock_timestamp(), false),
        s.override,
        s.override_reason,
        s.metadata,
        s.updated_at
    from guard.circuit_breaker_states as s
    where p_key is null or s.circuit_key = p_key
    order by s.circuit_key
$$;

comment on function guard.breaker_status(text) is 'One circuit, or all that have a row.';

grant execute on function guard.breaker_status(text) to guard_app, guard_operator, guard_reader, guard_monitor;
