-- provides: function guard.check_appointment(bigint, bigint, text, boolean)
-- provides: function guard.check_booking(bigint, bigint, text, boolean)
-- provides: function guard.record_validation(bigint, bigint, boolean, text, timestamptz)
-- provides: function guard.validate_appointment(bigint, bigint, text)
-- provides: function guard.take_back_claims(bigint[], text)
-- provides: function guard.rollback_booking(bigint, text)
--
-- After a booking: is it really there? And if it is not: take back what the call claims, tell somebody, ask a person.
-- Raises ZG301 (no such call), ZG307 (no call given), ZG308 (no reason given).

-- The checks in order; the first that fails is the reason. Reads only. The age is left out where the appointment may
-- rightly be old: when a webhook or a recovery looks at it. Where several appointments come into question, one that
-- still stands goes before one that was cancelled.
create or replace function guard.check_appointment(
    p_call_id bigint, p_appointment_id bigint, p_booking_id text, p_check_age boolean
)
returns table (success boolean, reason text, details jsonb, appointment_id bigint)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_appointment public.appointments;
    v_call public.calls;
    v_max_age constant interval := make_interval(secs => guard.setting('max_appointment_age_seconds')::numeric);
begin
    success := false;
    if p_appointment_id is not null then
        select a.* into v_appointment from public.appointments as a where a.id = p_appointment_id;
    elsif p_booking_id is not null then
        select a.* into v_appointment
        from public.appointments as a
        where a.calcom_v2_booking_id = p_booking_id
        order by
            a.call_id = p_call_id desc nulls last,
            a.status::text = any('{cancelled,rejected,rescheduled}'),
            a.id desc
        limit 1;
    else
        select a.* into v_appointment
        from public.appointments as a
        where a.call_id = p_call_id
        order by a.status::text = any('{cancelled,rejected,rescheduled}'), a.id desc
        limit 1;
    end if;
    appointment_id := v_appointment.id;
    select c.* into v_call from public.calls as c where c.id = p_call_id;

    if v_appointment.id is null then
        reason := 'appointment_not_found';
        details := jsonb_build_object('appointment_id', p_appointment_id, 'booking_id', p_booking_id);
    elsif v_appointment.call_id is distinct from p_call_id then
        reason := 'appointment_not_linked';
        details := jsonb_build_object('appointment_id', v_appointment.id, 'linked_to', v_appointment.call_id);
    elsif p_booking_id is not null and v_appointment.calcom_v2_booking_id is distinct from p_booking_id then
        reason := 'booking_id_mismatch';
        details := jsonb_build_object(
            'appointment_id', v_appointment.id, 'expected', p_booking_id, 'found', v_appointment.calcom_v2_booking_id
        );
    elsif v_appointment.status::text = any('{cancelled,rejected,rescheduled}') then
        reason := 'appointment_cancelled';
        details := jsonb_build_object('appointment_id', v_appointment.id, 'status', v_appointment.status);
    elsif p_check_age and guard.instant(v_appointment.created_at) < now() - v_max_age then
        reason := 'appointment_too_old';
        details := jsonb_build_object(
            'appointment_id', v_appointment.id,
            'age_seconds', round(extract(epoch from now() - guard.instant(v_appointment.created_at))),
            'max_age_seconds', extract(epoch from v_max_age)
        );
    elsif v_call.appointment_made is not true
        or v_call.session_outcome is distinct from 'appointment_booked'
        or v_call.appointment_link_status is distinct from 'linked'
    then
        reason := 'flags_inconsistent';
        details := jsonb_build_object(
            'appointment_id', v_appointment.id,
            'appointment_made', v_call.appointment_made,
            'session_outcome', v_call.session_outcome,
            'appointment_link_status', v_call.appointment_link_status
        );
    else
        success := true;
        details := jsonb_build_object('appointment_id', v_appointment.id);
    end if;
    return next;
end
$$;

comment on function guard.check_appointment(bigint, bigint, text, boolean) is
'The checks of a booking, without a record: does the appointment exist, belong to the call, stand, and agree with it?';

-- Where calls do not follow their appointments their flags are the application's, which may yet write them.
create or replace function guard.check_booking(
    p_call_id bigint, p_appointment_id bigint, p_booking_id text, p_check_age boolean
)
returns table (success boolean, reason text, details jsonb, appointment_id bigint)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    select c.success, c.reason, c.details, c.appointment_id into success, reason, details, appointment_id
    from guard.check_appointment(p_call_id, p_appointment_id, p_booking_id, p_check_age) as c;
    if reason = 'flags_inconsistent'
        and guard.mode_for('inconsistent_link_status', p_call_id) not in ('correct', 'enforce')
    then
        success := true;
        reason := null;
    end if;
    return next;
end
$$;

comment on function guard.check_booking(bigint, bigint, text, boolean) is
'The checks, as far as they are guard''s to keep: whether a booking of its own has succeeded.';

create or replace function guard.record_validation(
    p_call_id bigint, p_appointment_id bigint, p_success boolean, p_reason text, p_started timestamptz
)
returns numeric
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_duration_ms constant numeric := round(extract(epoch from clock_timestamp() - p_started) * 1000, 3);
begin
    insert into guard.validation_metrics (call_id, appointment_id, success, reason, duration_ms)
    values (p_call_id, p_appointment_id, p_success, p_reason, v_duration_ms);
    return v_duration_ms;
end
$$;

comment on function guard.record_validation(bigint, bigint, boolean, text, timestamptz) is
'Keep what a validation found and how long it took; returns the milliseconds.';

-- Locks: none but on its own new row of validation_metrics.
create or replace function guard.validate_appointment(
    p_call_id bigint, p_appointment_id bigint = null, p_booking_id text = null
)
returns table (success boolean, reason text, details jsonb, duration_ms numeric)
language plpgsql
volatile
security definer -- an application validates, and may not write metrics otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_started constant timestamptz := clock_timestamp();
    v_appointment_id bigint;
begin
    if p_call_id is null then
        raise exception using
            errcode = 'ZG307', message = 'a validation needs a call', hint = 'Give the id of the call that booked.';
    end if;
    select c.success, c.reason, c.details, c.appointment_id
    into success, reason, details, v_appointment_id
    from guard.check_appointment(p_call_id, p_appointment_id, p_booking_id, true) as c;
    duration_ms := guard.record_validation(p_call_id, v_appointment_id, success, reason, v_started);
    return next;
end
$$;

comment on function guard.validate_appointment(bigint, bigint, text) is
'Is the booking really there? Six checks, the first failure wins; one row in validation_metrics.';

-- What calls claim, taken back; where a call does have an appointment its flags stay in line with it. The caller holds
-- the rows' locks.
create or replace function guard.take_back_claims(p_calls bigint[], p_reason text)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
    perform set_config('timezone', guard.setting('app_timezone'), true);
    update public.calls as c
    set
        appointment_made = truth.booked and c.appointment_made,
        session_outcome = case when truth.booked then c.session_outcome else 'creation_failed' end,
        appointment_link_status = case when truth.booked then c.appointment_link_status else 'creation_failed' end,
        booking_confirmed = truth.booked and c.booking_confirmed,
        booking_failed = true,
        booking_failure_reason = p_reason,
        requires_manual_processing = true,
        updated_at = now()
    from (
        select k.call_id, exists (select from public.appointments as a where a.call_id = k.call_id) as booked
        from unnest(p_calls) as k (call_id)
    ) as truth
    where c.id = truth.call_id;
end
$$;

comment on function guard.take_back_claims(bigint[], text) is
'Have calls no longer claim a booking that failed, and say so.';

-- Everything or nothing, and once: a second rollback of the same call changes nothing and returns false, as long as its
-- review item is open; when a person has closed that, the call failed anew, and is asked about anew. The message
-- in the outbox goes out only when the transaction commits. Where the call does have an appointment, its flags stay in
-- line with it, since the row is the truth; the call is marked for a person all the same.
-- Locks: the call's row, its open review item.
create or replace function guard.rollback_booking(p_call_id bigint, p_reason text)
returns boolean
language plpgsql
volatile
security definer -- an application rolls back, and may not write alerts, queue and outbox otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_call public.calls;
    v_booked boolean;
begin
    if coalesce(p_reason, '') = '' or length(p_reason) > 100 then
        raise exception using
            errcode = 'ZG308',
            message = 'a rollback needs a reason of 1 to 100 characters',
            hint = 'Use a word such as calcom_booking_failed.';
    end if;
    select c.* into v_call from public.calls as c where c.id = p_call_id for no key update;
    if not found then
        raise exception using
            errcode = 'ZG301',
            message = format('there is no call %s', coalesce(p_call_id::text, 'null')),
            hint = 'Give the id of the call that booked.';
    end if;
    -- a new statement: it sees what a session that held the call's row has committed
    v_booked := exists (select from public.appointments as a where a.call_id = p_call_id);
    if v_call.requires_manual_processing
        and v_call.booking_failed
        and v_call.booking_failure_reason = p_reason
        and exists (
            select from guard.manual_review_queue as q
            where q.call_id = p_call_id and q.reason = p_reason and q.status <> 'resolved'
        )
        and (v_booked or (
            v_call.appointment_made is not true
            and v_call.session_outcome is not distinct from 'creation_failed'
            and v_call.appointment_link_status is not distinct from 'creation_failed'
        ))
    then
        return false;
    end if;

    perform guard.take_back_claims(array[p_call_id], p_reason);

    insert into guard.data_consistency_alerts (
        alert_type, severity, entity_type, entity_id, company_id, description, metadata, auto_corrected, corrected_at
    )
    values (
        'booking_rolled_back', 'critical', 'call', p_call_id, v_call.company_id,
        'a booking failed, and what the call claimed was taken back',
        jsonb_build_object('reason', p_reason, 'appointment_exists', v_booked, 'changes', (
            select jsonb_agg(jsonb_build_object('column', w.name, 'before', w.before, 'after', to_jsonb(c) -> w.name))
            from public.calls as c
            cross join lateral jsonb_each(jsonb_build_object(
                'appointment_made', v_call.appointment_made,
                'session_outcome', v_call.session_outcome,
                'appointment_link_status', v_call.appointment_link_status,
                'booking_confirmed', v_call.booking_confirmed,
                'booking_failed', v_call.booking_failed,
                'booking_failure_reason', v_call.booking_failure_reason,
                'requires_manual_processing', v_call.requires_manual_processing
            )) as w (name, before)
            where c.id = p_call_id and to_jsonb(c) -> w.name is distinct from w.before
        )),
        not v_booked, case when not v_booked then now() end
    );
    perform guard.queue_review(
        p_call_id, p_reason,
        jsonb_strip_nulls(jsonb_build_object('appointment_exists', v_booked, 'booking_id', v_call.booking_id))
    );
    perform guard.notify(
        'critical', 'booking_rolled_back', 'call', p_call_id, v_call.company_id,
        format('Call %s: the booking failed (%s) and was rolled back; a person must decide.', p_call_id, p_reason)
    );
    return true;
end
$$;

comment on function guard.rollback_booking(bigint, text) is
'Take back what a call claims after a failed booking, record it, and ask a person; returns whether anything changed.';

grant execute on function guard.validate_appointment(bigint, bigint, text) to guard_app, guard_operator;
grant execute on function guard.rollback_booking(bigint, text) to guard_app, guard_operator;
