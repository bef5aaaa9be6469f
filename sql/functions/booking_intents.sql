-- provides: function guard.is_recordable(jsonb)
-- provides: function guard.begin_booking(text, bigint, jsonb)
-- provides: function guard.lock_intent(text)
-- provides: function guard.mark_remote_booked(text, text)
-- provides: function guard.record_booking(text, jsonb)
-- provides: function guard.complete_booking(guard.booking_intents)
-- provides: function guard.validate_booking(text)
-- provides: function guard.fail_booking(text, text, text)
-- provides: function guard.recover_intent(text, text)
-- provides: function guard.recover_intents(interval, interval)
--
-- Write-ahead intents. The order: begin_booking, COMMIT; book remotely; mark_remote_booked, COMMIT; record_booking and
-- validate_booking, COMMIT. Whatever dies in between leaves an intent behind that says how far it came, and
-- recover_intents clears it up: no remote booking is left without an appointment or a review item.
--
--     started -> remote_booked -> recorded -> validated        failed -> remote_booked: the calendar answered late
--        |            |              |
--        +------------+--------------+--> failed               compensated: the remote booking was cancelled;
--                                                              recorded again if it is moved after that
--
-- Every step can be repeated: repeating one that was done returns the intent as it is.
-- Locks: the intent's row, then the call, then its review items; where an appointment is written, the chain of the
-- remote booking before all that, in the order of sql/functions/remote_bookings.sql, so that a webhook and a booking
-- process make one appointment and not two.
-- Raises ZG310 (key used for another request), ZG311 (illegal step), ZG312 (no such intent), ZG313 (bad input),
-- ZG301 (no such call).

-- Looked at before the calendar is asked: afterwards it would be too late.
create or replace function guard.is_recordable(p_request jsonb)
returns boolean
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_starts_at timestamptz;
    v_ends_at timestamptz;
begin
    perform
        (p_request ->> 'customer_id')::bigint, (p_request ->> 'service_id')::bigint, (p_request ->> 'staff_id')::bigint;
    v_starts_at := (p_request ->> 'starts_at')::timestamptz;
    v_ends_at := (p_request ->> 'ends_at')::timestamptz;
    return coalesce(v_starts_at <= v_ends_at, true);
exception
    when data_exception then
        return false;
end
$$;

comment on function guard.is_recordable(jsonb) is
'Whether an appointment can be written from a booking request: its times are times and its ids numbers.';

create or replace function guard.begin_booking(p_key text, p_call_id bigint, p_request jsonb)
returns table (intent_id bigint, state text, is_new boolean, booking_id text, appointment_id bigint)
language plpgsql
volatile
security definer -- an application books, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_intent guard.booking_intents;
    v_hash constant text := encode(
        sha256(convert_to(coalesce(p_call_id::text, '') || ' ' || coalesce(p_request::text, ''), 'UTF8')), 'hex'
    );
begin
    if coalesce(p_key, '') = '' or length(p_key) > 200 then
        raise exception using
            errcode = 'ZG313', message = 'an idempotency key has 1 to 200 characters', hint = 'Use a UUID, say.';
    elsif p_request is null or jsonb_typeof(p_request) <> 'object' or pg_column_size(p_request) > 65536 then
        raise exception using
            errcode = 'ZG313',
            message = 'a booking request is a JSON object of at most 64 kB',
            hint = 'Give the columns of the appointment: starts_at, ends_at, staff_id, service_id, customer_id.';
    elsif not guard.is_recordable(p_request) then
        raise exception using
            errcode = 'ZG313',
            message = 'a value of the booking request cannot be read',
            hint = 'starts_at and ends_at are times, in this order; staff_id, service_id and customer_id are numbers.';
    elsif not exists (select from public.calls as c where c.id = p_call_id) then
        raise exception using
            errcode = 'ZG301',
            message = format('there is no call %s', coalesce(p_call_id::text, 'null')),
            hint = 'Write the call first.';
    end if;
    insert into guard.booking_intents (key, call_id, request, request_hash)
    values (p_key, p_call_id, p_request, v_hash)
    on conflict (key) do nothing
    returning * into v_intent;
    is_new := found;
    if not is_new then
        select i.* into v_intent from guard.booking_intents as i where i.key = p_key;
        if v_intent.request_hash <> v_hash then
            raise exception using
                errcode = 'ZG310',
                message = 'this idempotency key was used for another request',
                detail = format('It belongs to intent %s of call %s.', v_intent.id, v_intent.call_id),
                hint = 'Use a new key for a new request, and the same request for the same key.';
        end if;
    end if;
    intent_id := v_intent.id;
    state := v_intent.state;
    booking_id := v_intent.booking_id;
    appointment_id := v_intent.appointment_id;
    return next;
end
$$;

comment on function guard.begin_booking(text, bigint, jsonb) is
'Open the intent of a booking, or find it: the same key and request give the first result. Commit before booking.';

create or replace function guard.lock_intent(p_key text)
returns guard.booking_intents
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_intent guard.booking_intents;
begin
    select i.* into v_intent from guard.booking_intents as i where i.key = p_key for no key update;
    if not found then
        raise exception using
            errcode = 'ZG312', message = 'there is no intent with this key', hint = 'Call guard.begin_booking first.';
    end if;
    return v_intent;
end
$$;

comment on function guard.lock_intent(text) is 'The intent of a key, locked until the transaction ends.';

create or replace function guard.mark_remote_booked(p_key text, p_booking_id text)
returns guard.booking_intents
language plpgsql
volatile
security definer -- an application books, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_intent guard.booking_intents := guard.lock_intent(p_key);
    -- moved meanwhile, the intent has a newer id
    v_chain constant text[] := guard.booking_chain(array[v_intent.booking_id]);
begin
    if coalesce(p_booking_id, '') = '' or length(p_booking_id) > 200 then
        raise exception using
            errcode = 'ZG313', message = 'a booking id has 1 to 200 characters', hint = 'Give the calendar''s uid.';
    elsif p_booking_id = any(v_chain) and v_intent.state <> 'failed' then
        return v_intent;
    elsif v_intent.booking_id is not null and p_booking_id <> all(v_chain)
        or v_intent.state not in ('started', 'failed')
    then
        raise exception using
            errcode = 'ZG311',
            message = format('intent %s is %s: it cannot be booked remotely again', v_intent.id, v_intent.state),
            detail = format('Its remote booking is %s.', coalesce(v_intent.booking_id, 'none')),
            hint = 'Book once per key. Queue the second remote booking for a person.';
    end if;
    update guard.booking_intents as i
    set state = 'remote_booked', booking_id = p_booking_id, failure_reason = null, updated_at = now()
    where i.id = v_intent.id
    returning i.* into v_intent;
    return v_intent;
end
$$;

comment on function guard.mark_remote_booked(text, text) is
'The calendar has booked: remember the remote booking, and commit before anything else is done.';

-- p_appointment holds the appointment's columns; what it leaves out is taken from the request. If the appointment
-- exists already, because the calendar's webhook was faster, it is adopted, and gets what it lacks. What the calendar
-- said meanwhile holds: of a booking that was moved the new one is recorded, and of one that was cancelled the
-- appointment is cancelled, and the intent compensated.
create or replace function guard.record_booking(p_key text, p_appointment jsonb)
returns guard.booking_intents
language plpgsql
volatile
security definer -- an application books, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_chain text[];
    v_intent guard.booking_intents;
begin
    if jsonb_typeof(p_appointment) <> 'object' then
        raise exception using
            errcode = 'ZG313',
            message = 'the columns of an appointment are a JSON object',
            hint = 'Give starts_at, ends_at, staff_id, service_id, customer_id; or {}: the request has them.';
    end if;
    loop
        v_chain := guard.lock_bookings(array(select i.booking_id from guard.booking_intents as i where i.key = p_key));
        v_intent := guard.lock_intent(p_key);
        exit when v_intent.booking_id is null or v_intent.booking_id = any(v_chain);
    end loop;
    if v_intent.state in ('recorded', 'validated', 'compensated') then
        return v_intent;
    elsif v_intent.state <> 'remote_booked' then
        raise exception using
            errcode = 'ZG311',
            message = format('intent %s is %s: there is no remote booking to record', v_intent.id, v_intent.state),
            hint = 'Call guard.mark_remote_booked first.';
    end if;
    update guard.booking_intents as i set request = i.request || p_appointment
    where i.id = v_intent.id and p_appointment <> '{}';
    insert into guard.remote_bookings (booking_id, state) values (v_intent.booking_id, 'active')
    on conflict (booking_id) do nothing;
    perform guard.sync_booking(v_intent.booking_id);
    update guard.booking_intents as i
    set state = case i.state when 'remote_booked' then 'recorded' else i.state end, updated_at = now()
    where i.id = v_intent.id and (i.appointment_id is not null or i.state <> 'remote_booked')
    returning i.* into v_intent;
    if not found then
        raise exception using
            errcode = 'ZG301',
            message = format('there is no call %s any more', v_intent.call_id),
            hint = 'Queue the remote booking for a person: guard.fail_booking does.';
    end if;
    return v_intent;
end
$$;

comment on function guard.record_booking(text, jsonb) is
'Write the appointment of a remote booking, or adopt the one that a webhook wrote; the call follows by trigger.';

create or replace function guard.complete_booking(p_intent guard.booking_intents)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    update guard.booking_intents as i set state = 'validated', updated_at = now() where i.id = p_intent.id;
    perform guard.settle_calls(array[p_intent.call_id]);
end
$$;

comment on function guard.complete_booking(guard.booking_intents) is
'An intent is done: its appointment is there and sound, whatever failed before.';

create or replace function guard.validate_booking(p_key text)
returns table (success boolean, reason text, details jsonb, duration_ms numeric)
language plpgsql
volatile
security definer -- an application books, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_started constant timestamptz := clock_timestamp();
    v_intent guard.booking_intents := guard.lock_intent(p_key);
    v_appointment_id bigint;
begin
    if v_intent.state not in ('recorded', 'validated') then
        raise exception using
            errcode = 'ZG311',
            message = format('intent %s is %s: there is no appointment to validate', v_intent.id, v_intent.state),
            hint = 'Call guard.record_booking first.';
    end if;
    select c.success, c.reason, c.details, c.appointment_id into success, reason, details, v_appointment_id
    from guard.check_booking(v_intent.call_id, v_intent.appointment_id, v_intent.booking_id, true) as c;
    duration_ms := guard.record_validation(v_intent.call_id, v_appointment_id, success, reason, v_started);
    if success and v_intent.state = 'recorded' then
        perform guard.complete_booking(v_intent);
    end if;
    return next;
end
$$;

comment on function guard.validate_booking(text) is 'Validate what an intent has recorded; on success it is done.';

-- p_reason is why a person is asked. p_cause is told to whoever repeats the request, and kept as failure_reason: it
-- says what happened, such as circuit_open or the class of an error. outcome_unknown: the calendar may have booked.
create or replace function guard.fail_booking(p_key text, p_reason text, p_cause text = null)
returns guard.booking_intents
language plpgsql
volatile
security definer -- an application books, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_intent guard.booking_intents := guard.lock_intent(p_key);
    v_cause constant text := coalesce(p_cause, p_reason);
    v_call_id bigint;
begin
    if v_intent.state in ('failed', 'compensated') then
        return v_intent;
    elsif v_intent.state = 'validated' then
        raise exception using
            errcode = 'ZG311',
            message = format('intent %s is %s: it cannot fail any more', v_intent.id, v_intent.state),
            hint = 'Cancel the booking in the calendar: its webhook does the rest.';
    end if;
    select c.id into v_call_id from public.calls as c where c.id = v_intent.call_id;
    if v_call_id is not null then
        perform guard.rollback_booking(v_call_id, p_reason);
    end if;
    perform guard.queue_review(
        v_call_id, p_reason,
        jsonb_strip_nulls(jsonb_build_object(
            'subject', coalesce(v_intent.booking_id, v_intent.key), 'intent_id', v_intent.id, 'key', v_intent.key,
            'booking_id', v_intent.booking_id, 'cause', v_cause,
            'question', case
                when v_intent.booking_id is not null
                    then 'the calendar holds this booking: record it here, or cancel it there'
                when v_cause = 'outcome_unknown' then 'nobody knows whether the calendar booked: look there'
            end
        ))
    );
    update guard.booking_intents as i
    set state = 'failed', failure_reason = v_cause, updated_at = now()
    where i.id = v_intent.id
    returning i.* into v_intent;
    return v_intent;
end
$$;

comment on function guard.fail_booking(text, text, text) is
'Give a booking up: the call''s claim is rolled back, and a person is asked, with key and remote booking.';

-- p_cause says what is known of an intent that the calendar has not answered: outcome_unknown, or not_booked, where it
-- was asked. action: recorded, validated, compensated (cancelled meanwhile), queued, none (there was nothing to do), or
-- postponed: locks or resources are not to be had, which says nothing about the booking.
create or replace function guard.recover_intent(p_key text, p_cause text = 'outcome_unknown')
returns table (state text, action text)
language plpgsql
volatile
security definer -- an application recovers, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_intent guard.booking_intents;
    v_is_valid boolean;
begin
    perform guard.lock_bookings(array(select i.booking_id from guard.booking_intents as i where i.key = p_key));
    v_intent := guard.lock_intent(p_key);
    action := 'none';
    begin
        if v_intent.state = 'started' then
            perform guard.fail_booking(p_key, 'calcom_booking_failed', p_cause);
            action := 'queued';
        elsif v_intent.state = 'remote_booked' then
            v_intent := guard.record_booking(p_key, '{}');
            action := v_intent.state;
        end if;
        if v_intent.state = 'recorded' then
            select c.success into v_is_valid
            from guard.check_booking(v_intent.call_id, v_intent.appointment_id, v_intent.booking_id, false) as c;
            if v_is_valid then
                perform guard.complete_booking(v_intent);
                action := case action when 'none' then 'validated' else action end;
            else
                perform guard.fail_booking(p_key, 'appointment_validation_failed');
                action := 'queued';
            end if;
        end if;
    exception
        when serialization_failure or deadlock_detected then
            raise;
        when object_not_in_prerequisite_state or insufficient_resources or system_error then
            action := 'postponed';
        when others then
            -- a record that is refused, an overlap say: the remote booking goes to a person
            perform guard.fail_booking(p_key, 'appointment_validation_failed', sqlstate);
            action := 'queued';
    end;
    select i.state into state from guard.booking_intents as i where i.id = v_intent.id;
    return next;
end
$$;

comment on function guard.recover_intent(text, text) is
'Clear up one booking, whatever it died at: record it, validate it, or queue it for a person.';

-- One that cannot be mended does not hold up the others; what another session works on is skipped. An intent whose
-- outcome nobody knows is queued for a person: ask the calendar before, and mark what it says. It can be given longer.
-- At most the 500 oldest: each takes a lock of its own, and a server has not any number of them.
create or replace function guard.recover_intents(
    p_older_than interval = '1 minute', p_unknown_older_than interval = null
)
returns table (key text, state text, action text)
language plpgsql
volatile
security definer -- an application recovers, and may not write intents otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_intents constant bigint[] := array(
        select i.id
        from guard.booking_intents as i
        where
            i.state::text = any('{started,remote_booked,recorded}')
            and i.updated_at <= now() - case i.state
                when 'started' then coalesce(p_unknown_older_than, p_older_than) else p_older_than
            end
        order by i.updated_at, i.id
        limit 500
    );
begin
    -- before any row, and all at once
    perform guard.lock_bookings(array(select i.booking_id from guard.booking_intents as i where i.id = any(v_intents)));
    for key in
        select i.key
        from guard.booking_intents as i
        where
            i.id = any(v_intents)
            -- it has not moved meanwhile
            and i.state::text = any('{started,remote_booked,recorded}')
            and i.updated_at <= now() - least(p_older_than, p_unknown_older_than)
        order by i.id
        for no key update skip locked
    loop
        select r.state, r.action into state, action from guard.recover_intent(key) as r;
        return next;
    end loop;
end
$$;

comment on function guard.recover_intents(interval, interval) is
'Clear up what died while it booked, the 500 oldest: record it, validate it, or queue it for a person.';

grant execute on function guard.begin_booking(text, bigint, jsonb) to guard_app;
grant execute on function guard.mark_remote_booked(text, text) to guard_app;
grant execute on function guard.record_booking(text, jsonb) to guard_app;
grant execute on function guard.validate_booking(text) to guard_app;
grant execute on function guard.fail_booking(text, text, text) to guard_app;
grant execute on function guard.recover_intent(text, text) to guard_app, guard_operator;
grant execute on function guard.recover_intents(interval, interval) to guard_app, guard_operator;
