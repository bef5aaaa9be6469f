-- provides: function guard.breaker_snapshots(text[])
-- provides: function guard.breaker_merge(text, jsonb, uuid, text)
-- provides: function guard.breaker_report(jsonb, jsonb, text)
--
-- Where a circuit lives in another store too (Redis, or the memory of a process), this keeps the two in line: each
-- tells the other what it knows, and the newer state wins in both.
-- Raises ZG201 (key), ZG207 (a snapshot or report that cannot be read). Locks: the circuits' rows.

-- What one store tells another of a circuit. Times are in seconds from now, so that two stores need not agree on what
-- time it is: open_for and probe_for lie ahead; opened_ago, closed_ago and failed_ago lie behind.
create or replace function guard.breaker_snapshots(p_keys text[])
returns table (circuit_key text, snapshot jsonb)
language sql
volatile
security definer -- a probe's token is for those who may run the breaker, not for every reader
set search_path = pg_catalog, pg_temp
as $$
    select
        s.circuit_key,
        jsonb_build_object(
            'state', s.state,
            'generation', s.generation,
            'failure_count', s.failure_count,
            'success_count', s.success_count,
            'open_for', extract(epoch from s.open_until - t.at),
            'probe_token', s.probe_token,
            'probe_for', extract(epoch from s.probe_until - t.at),
            'opened_ago', extract(epoch from t.at - s.opened_at),
            'closed_ago', extract(epoch from t.at - s.closed_at),
            'failed_ago', extract(epoch from t.at - s.last_failure_at),
            'override', s.override,
            'override_reason', s.override_reason,
            'override_revision', s.override_revision
        )
    from guard.circuit_breaker_states as s
    cross join (select clock_timestamp() as at) as t
    where s.circuit_key = any(p_keys)
$$;

comment on function guard.breaker_snapshots(text[]) is 'Circuits in the form that stores exchange.';

grant execute on function guard.breaker_snapshots(text[]) to guard_app, guard_operator;

-- Takes over what another store knows, if it is newer: a higher override revision, or with the same one a higher
-- generation. The generation here never falls. Of one and the same generation only the probe is taken over: whose lease
-- is known here first keeps it until it ends or p_released names it. Returns the circuit as it is then.
create or replace function guard.breaker_merge(
    p_key text, p_snapshot jsonb, p_released uuid = null, p_node text = null
)
returns jsonb
language plpgsql
volatile
security definer -- as breaker_record
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := clock_timestamp();
    v_second constant interval := interval '1 second';
    v_own guard.circuit_breaker_states;
    v_new record;
    v_result jsonb;
begin
    perform guard.breaker_check_key(p_key);
    select x.* into v_new
    from jsonb_to_record(p_snapshot) as x (
        state text, generation bigint, failure_count integer, success_count integer, open_for numeric,
        probe_token uuid, probe_for numeric, opened_ago numeric, closed_ago numeric, failed_ago numeric,
        override text, override_reason text, override_revision bigint
    );
    if v_new.state is null or v_new.generation is null or v_new.override_revision is null then
        raise exception using
            errcode = 'ZG207',
            message = 'the snapshot lacks its state, generation or override_revision',
            hint = 'Pass what guard.breaker_snapshots gives.';
    end if;
    v_own := guard.breaker_lock(p_key);
    if (v_new.override_revision, v_new.generation) > (v_own.override_revision, v_own.generation) then
        update guard.circuit_breaker_states as s
        set
            state = v_new.state,
            generation = greatest(v_new.generation, s.generation + 1),
            failure_count = coalesce(v_new.failure_count, 0),
            success_count = coalesce(v_new.success_count, 0),
            open_until = v_now + v_new.open_for * v_second,
            probe_token = v_new.probe_token,
            probe_until = case when v_new.probe_token is not null then v_now + v_new.probe_for * v_second end,
            opened_at = v_now - v_new.opened_ago * v_second,
            closed_at = v_now - v_new.closed_ago * v_second,
            last_failure_at = v_now - v_new.failed_ago * v_second,
            override = v_new.override,
            override_reason = left(v_new.override_reason, 1000),
            override_revision = v_new.override_revision,
            updated_at = v_now
        where s.id = v_own.id;
        if v_new.override_revision > v_own.override_revision then
            insert into guard.audit_log (action, object, reason, before, after)
            values (
                'breaker_override', p_key, left(v_new.override_reason, 1000),
                jsonb_build_object('state', v_own.state, 'override', v_own.override, 'generation', v_own.generation),
                jsonb_build_object(
                    'state', v_new.state, 'override', v_new.override, 'generation', v_new.generation, 'node', p_node
                )
            );
        end if;
    elsif
        v_own.state = 'half_open'
        and (v_new.override_revision, v_new.generation) = (v_own.override_revision, v_own.generation)
    then
        if v_own.probe_token = p_released or v_own.probe_until <= v_now then
            v_own.probe_token := null;
        end if;
        update guard.circuit_breaker_states as s
        set
            success_count = greatest(s.success_count, v_new.success_count),
            probe_token = coalesce(v_own.probe_token, v_new.probe_token),
            probe_until = case
                when v_own.probe_token is not null then v_own.probe_until
                when v_new.probe_token is not null then v_now + v_new.probe_for * v_second
            end,
            updated_at = v_now
        where s.id = v_own.id;
    end if;
    select n.snapshot into v_result from guard.breaker_snapshots(array[p_key]) as n;
    return v_result;
end
$$;

comment on function guard.breaker_merge(text, jsonb, uuid, text) is
'Take over what another store knows of a circuit, if it is newer; returns the circuit as it is then.';

grant execute on function guard.breaker_merge(text, jsonb, uuid, text) to guard_app, guard_operator;

-- What a node decided elsewhere and counted since it last reported. p_events: [{event_id, circuit_key, event,
-- from_state, to_state, generation, store, error_class, ago}], ago in seconds; an event_id that is known is skipped.
-- p_counts: [{circuit_key, successes, failures, timeouts, ignored, rejected}], added to the current minute; circuits
-- without a row get one, so that healthy ones are seen too. Locks: the rows of the node's own counters.
create or replace function guard.breaker_report(p_events jsonb, p_counts jsonb, p_node text)
returns void
language plpgsql
volatile
security definer -- as breaker_record
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_node is null or jsonb_typeof(p_events) is distinct from 'array'
        or jsonb_typeof(p_counts) is distinct from 'array' then
        raise exception using
            errcode = 'ZG207',
            message = 'a report has a node, an array of events and an array of counts',
            hint = 'Pass [] where there is nothing to report.';
    end if;
    insert into guard.circuit_breaker_events (
        event_id, circuit_key, event, from_state, to_state, generation, store, node, error_class, created_at
    )
    select
        e.event_id, e.circuit_key, e.event, e.from_state, e.to_state, e.generation, e.store, left(p_node, 200),
        left(e.error_class, 200), clock_timestamp() - coalesce(e.ago, 0) * interval '1 second'
    from jsonb_to_recordset(p_events) as e (
        event_id uuid, circuit_key text, event text, from_state text, to_state text, generation bigint, store text,
        error_class text, ago numeric
    )
    on conflict (event_id) do nothing;

    insert into guard.circuit_breaker_states (circuit_key)
    select c.circuit_key
    from jsonb_to_recordset(p_counts) as c (circuit_key text)
    where not exists (select from guard.circuit_breaker_states as s where s.circuit_key = c.circuit_key)
    order by c.circuit_key
    on conflict do nothing;

    insert into guard.circuit_breaker_metrics as m (
        circuit_key, minute, node, successes, failures, timeouts, ignored, rejected
    )
    select
        c.circuit_key, date_trunc('minute', clock_timestamp()), left(p_node, 200), sum(coalesce(c.successes, 0)),
        sum(coalesce(c.failures, 0)), sum(coalesce(c.timeouts, 0)), sum(coalesce(c.ignored, 0)),
        sum(coalesce(c.rejected, 0))
    from jsonb_to_recordset(p_counts) as c (
        circuit_key text, successes bigint, failures bigint, timeouts bigint, ignored bigint, rejected bigint
    )
    group by c.circuit_key
    order by c.circuit_key
    on conflict (circuit_key, minute, node) do update set
        successes = m.successes + excluded.successes,
        failures = m.failures + excluded.failures,
        timeouts = m.timeouts + excluded.timeouts,
        ignored = m.ignored + excluded.ignored,
        rejected = m.rejected + excluded.rejected;
end
$$;

comment on function guard.breaker_report(jsonb, jsonb, text) is
'Keep the events and counters that a node has gathered since its last report.';

grant execute on function guard.breaker_report(jsonb, jsonb, text) to guard_app;
