-- provides: function guard.webhook_seen(text, text, jsonb)
-- provides: function guard.webhook_done(text, text, jsonb, text)
-- provides: function guard.without_phone_numbers(jsonb)
-- provides: function guard.handle_call_ended(jsonb)
-- provides: function guard.booking_for(text, jsonb)
-- provides: function guard.handle_booking_event(jsonb)
--
-- Webhooks of the phone agent (Retell) and the calendar (Cal.com). They come twice, late, and in any order; each is
-- handled once, by the digest of its payload, and kept whole but for phone numbers. The signature is checked before,
-- where the raw body is: see guard/webhooks.py.
-- Locks: an advisory transaction lock per phone call or remote booking, so that its events are handled one by one.
-- Raises ZG320 (the payload is not what it should be).

create or replace function guard.without_phone_numbers(p_payload jsonb)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        jsonb_object_agg(e.key, case jsonb_typeof(e.value)
            when 'object' then guard.without_phone_numbers(e.value)
            else e.value
        end) filter (where e.key !~* 'number|phone|transcript|recording'),
        '{}'
    )
    from jsonb_each(p_payload) as e
$$;

comment on function guard.without_phone_numbers(jsonb) is 'A payload without what may hold a phone number.';

create or replace function guard.webhook_seen(p_source text, p_event text, p_payload jsonb)
returns boolean
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_payload is null or jsonb_typeof(p_payload) <> 'object' or coalesce(p_event, '') = '' then
        raise exception using
            errcode = 'ZG320',
            message = format('this is not an event of %s', p_source),
            hint = 'Give the whole body of the webhook, as JSON.';
    end if;
    return exists (
        select from guard.webhook_events as w
        where w.source = p_source and w.digest = encode(sha256(convert_to(p_payload::text, 'UTF8')), 'hex')
    );
end
$$;

comment on function guard.webhook_seen(text, text, jsonb) is 'Whether this very event was handled before.';

create or replace function guard.webhook_done(p_source text, p_event text, p_payload jsonb, p_action text)
returns text
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into guard.webhook_events (source, event, digest, payload, action)
    values (
        p_source, left(p_event, 100), encode(sha256(convert_to(p_payload::text, 'UTF8')), 'hex'),
        guard.without_phone_numbers(p_payload), p_action
    )
    on conflict (source, digest) do nothing;
    return p_action;
end
$$;

comment on function guard.webhook_done(text, text, jsonb, text) is 'Keep an event and what was done about it.';

-- call_started, call_ended and call_analyzed of one call, in any order: what a later one said is never taken back.
-- action: created, updated, duplicate, ignored (another kind of event), queued (the company is not known).
create or replace function guard.handle_call_ended(p_event jsonb)
returns table (call_id bigint, action text)
language plpgsql
volatile
security definer -- the receiver of webhooks need not have rights on calls
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_event constant text := p_event ->> 'event';
    v_call constant jsonb := p_event -> 'call';
    v_retell_id constant text := v_call ->> 'call_id';
    v_company_id bigint;
    v_stored public.calls;
    v_ended_at timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended('guard.call ' || v_retell_id, 0));
    if guard.webhook_seen('retell', v_event, p_event) then
        select c.id into call_id from public.calls as c where c.retell_call_id = v_retell_id;
        action := 'duplicate';
        return next;
        return;
    elsif v_event is null or coalesce(v_retell_id, '') = '' or length(v_retell_id) > 255 then
        raise exception using
            errcode = 'ZG320',
            message = 'the event does not say what happened to which call',
            hint = 'event says what happened; call.call_id is the phone agent''s id.';
    elsif v_event not in ('call_started', 'call_ended', 'call_analyzed') then
        action := guard.webhook_done('retell', v_event, p_event, 'ignored');
        return next;
        return;
    end if;
    perform set_config('timezone', guard.setting('app_timezone'), true);
    select c.* into v_stored from public.calls as c where c.retell_call_id = v_retell_id for no key update;
    v_company_id := coalesce(
        v_stored.company_id,
        (
            select c.id from public.companies as c
            where c.id::text in (
                v_call #>> '{metadata,company_id}', v_call #>> '{retell_llm_dynamic_variables,company_id}'
            )
        )
    );
    if v_company_id is null then
        perform guard.queue_review(
            null, 'call_without_company',
            jsonb_build_object('subject', v_retell_id, 'retell_call_id', v_retell_id, 'event', v_event)
        );
        action := guard.webhook_done('retell', v_event, p_event, 'queued');
        return next;
        return;
    end if;

    if v_stored.id is null then
        v_ended_at := to_timestamp((v_call ->> 'start_timestamp')::double precision / 1000);
        insert into public.calls (
            company_id, retell_call_id, direction, status, from_number, to_number, call_successful, created_at,
            updated_at
        )
        values (
            v_company_id, v_retell_id, coalesce(v_call ->> 'direction', 'inbound'),
            case when v_event = 'call_started' then 'ongoing' else 'ended' end,
            v_call ->> 'from_number', v_call ->> 'to_number',
            (v_call #>> '{call_analysis,call_successful}')::boolean, coalesce(v_ended_at, now()), now()
        )
        returning id into call_id;
        action := 'created';
    else
        call_id := v_stored.id;
        update public.calls as c
        set
            status = case when v_event = 'call_started' then coalesce(c.status, 'ongoing') else 'ended' end,
            direction = coalesce(c.direction, v_call ->> 'direction'),
            call_successful = coalesce((v_call #>> '{call_analysis,call_successful}')::boolean, c.call_successful),
            updated_at = now()
        where c.id = v_stored.id;
        action := 'updated';
    end if;
    if v_event <> 'call_started'
        and v_stored.appointment_made
        and not exists (select from public.appointments as a where a.call_id = v_stored.id)
    then
        perform guard.queue_review(
            v_stored.id, 'appointment_validation_failed',
            jsonb_build_object('booking_id', v_stored.booking_id, 'event', v_event)
        );
    end if;
    perform guard.webhook_done('retell', v_event, p_event, action);
    return next;
exception
    when invalid_text_representation or numeric_value_out_of_range or datetime_field_overflow then
        raise exception using
            errcode = 'ZG320',
            message = 'a value of the event cannot be read',
            hint = 'Timestamps are epoch milliseconds, call_successful is true or false.';
end
$$;

comment on function guard.handle_call_ended(jsonb) is
'Handle an event of the phone agent: idempotent, in any order; returns the call and what was done.';

-- The call that a remote booking belongs to: by intent, by calls.booking_id, by the ids in its metadata.
create or replace function guard.booking_for(p_booking_id text, p_metadata jsonb)
returns bigint
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        (select min(i.call_id) from guard.booking_intents as i where i.booking_id = p_booking_id),
        (select min(c.id) from public.calls as c where c.booking_id = p_booking_id having count(*) = 1),
        (select c.id from public.calls as c where c.id::text = p_metadata ->> 'call_id'),
        (select c.id from public.calls as c where c.retell_call_id = p_metadata ->> 'retell_call_id')
    )
$$;

comment on function guard.booking_for(text, jsonb) is
'The call that a remote booking belongs to; null if none is known.';

-- A booking is made, moved (it gets a new uid, which replaces the old one) or cancelled. What is heard of a booking
-- that was replaced or cancelled before changes nothing. action: created, updated, rescheduled, cancelled, duplicate,
-- stale (older than what is known), ignored (another trigger), queued (no call is known, or it does not match).
create or replace function guard.handle_booking_event(p_event jsonb)
returns table (appointment_id bigint, action text)
language plpgsql
volatile
security definer -- the receiver of webhooks need not have rights on appointments
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_trigger constant text := p_event ->> 'triggerEvent';
    v_payload constant jsonb := p_event -> 'payload';
    v_uid constant text := v_payload ->> 'uid';
    v_old_uid constant text := v_payload ->> 'rescheduleUid';
    v_event_at timestamptz;
    v_starts_at timestamptz;
    v_ends_at timestamptz;
    v_known guard.remote_bookings;
    v_call public.calls;
    v_mismatch text;
begin
    -- both bookings of a reschedule, always in the same order
    perform pg_advisory_xact_lock(hashtextextended('guard.booking ' || b.uid, 0))
    from (
        select distinct u.uid from unnest(array[v_old_uid, v_uid]) as u (uid) where u.uid is not null order by 1
    ) as b;
    if guard.webhook_seen('calcom', v_trigger, p_event) then
        select a.id into appointment_id from public.appointments as a where a.calcom_v2_booking_id = v_uid;
        action := 'duplicate';
        return next;
        return;
    elsif v_trigger not in ('BOOKING_CREATED', 'BOOKING_RESCHEDULED', 'BOOKING_CANCELLED') then
        action := guard.webhook_done('calcom', v_trigger, p_event, 'ignored');
        return next;
        return;
    elsif v_trigger is null or coalesce(v_uid, '') = '' or length(v_uid) > 200 or length(v_old_uid) > 200 then
        raise exception using
            errcode = 'ZG320',
            message = 'the event does not say what happened to which booking',
            hint = 'triggerEvent says what happened; payload.uid is the calendar''s id.';
    end if;
    v_event_at := coalesce((p_event ->> 'createdAt')::timestamptz, now());
    v_starts_at := (v_payload ->> 'startTime')::timestamptz;
    v_ends_at := (v_payload ->> 'endTime')::timestamptz;

    perform set_config('timezone', guard.setting('app_timezone'), true);
    select r.* into v_known from guard.remote_bookings as r where r.booking_id = v_uid;
    select a.id into appointment_id
    from public.appointments as a
    where a.calcom_v2_booking_id in (v_uid, case when v_trigger = 'BOOKING_RESCHEDULED' then v_old_uid end)
    order by a.calcom_v2_booking_id = v_uid desc, a.id
    limit 1;

    if v_trigger = 'BOOKING_RESCHEDULED' and v_old_uid is distinct from v_uid and v_old_uid is not null then
        insert into guard.remote_bookings as r (booking_id, state, replaced_by, event_at)
        values (v_old_uid, 'superseded', v_uid, v_event_at)
        on conflict (booking_id) do update
        set state = 'superseded', replaced_by = v_uid, event_at = greatest(r.event_at, v_event_at), updated_at = now();
    end if;
    if v_known.state in ('superseded', 'cancelled')
        or (v_trigger <> 'BOOKING_CANCELLED' and v_event_at < v_known.event_at)
    then
        action := guard.webhook_done('calcom', v_trigger, p_event, 'stale');
        return next;
        return;
    end if;
    insert into guard.remote_bookings as r (booking_id, state, event_at)
    values (v_uid, case v_trigger when 'BOOKING_CANCELLED' then 'cancelled' else 'active' end, v_event_at)
    on conflict (booking_id) do update
    set state = excluded.state, event_at = greatest(r.event_at, excluded.event_at), updated_at = now();

    select c.* into v_call
    from public.calls as c
    where c.id = coalesce(
        (select a.call_id from public.appointments as a where a.id = appointment_id),
        guard.booking_for(v_uid, v_payload -> 'metadata'),
        guard.booking_for(v_old_uid, null)
    );

    if v_trigger = 'BOOKING_CANCELLED' then
        if appointment_id is not null then
            update public.appointments as a set status = 'cancelled', updated_at = now() where a.id = appointment_id;
        elsif v_call.appointment_made then
            -- a claim that will never have its appointment
            update public.calls as c
            set
                appointment_made = false,
                session_outcome = case when c.session_outcome = 'appointment_booked' then 'appointment_removed'
                    else c.session_outcome end,
                appointment_link_status = 'unlinked',
                updated_at = now()
            where c.id = v_call.id and not exists (select from public.appointments as a where a.call_id = c.id);
        end if;
        update guard.booking_intents as i
        set state = 'compensated', updated_at = now()
        where i.booking_id = v_uid and i.state <> 'compensated';
        action := 'cancelled';
    elsif appointment_id is null and v_call.id is null then
        perform guard.queue_review(
            null, 'booking_without_call', jsonb_build_object('subject', v_uid, 'booking_id', v_uid)
        );
        action := 'queued';
    elsif appointment_id is null then
        insert into public.appointments (
            company_id, call_id, calcom_v2_booking_id, source, status, starts_at, ends_at, created_at, updated_at
        )
        values (
            v_call.company_id, v_call.id, v_uid, 'retell_webhook', 'booked', v_starts_at, v_ends_at, now(), now()
        )
        returning id into appointment_id;
        action := 'created';
    else
        update public.appointments as a
        set
            calcom_v2_booking_id = v_uid,
            call_id = coalesce(a.call_id, v_call.id),
            starts_at = coalesce(v_starts_at, a.starts_at),
            ends_at = coalesce(v_ends_at, a.ends_at),
            updated_at = now()
        where a.id = appointment_id;
        update guard.booking_intents as i
        set booking_id = v_uid, updated_at = now()
        where i.booking_id = v_old_uid and v_trigger = 'BOOKING_RESCHEDULED';
        -- the new booking was heard of before the move: the old one's appointment is not active any more
        update public.appointments as a
        set status = 'rescheduled', updated_at = now()
        where a.calcom_v2_booking_id = v_old_uid and v_trigger = 'BOOKING_RESCHEDULED' and a.id <> appointment_id;
        action := case v_trigger when 'BOOKING_RESCHEDULED' then 'rescheduled' else 'updated' end;
    end if;

    if v_trigger <> 'BOOKING_CANCELLED' and v_call.id is not null then
        select c.reason into v_mismatch from guard.check_appointment(v_call.id, appointment_id, v_uid, false) as c;
        -- where calls do not follow their appointments, their flags are the application's, which may yet write them
        if v_mismatch is not null and (
            v_mismatch <> 'flags_inconsistent'
            or guard.mode_for('inconsistent_link_status', v_call.id) in ('correct', 'enforce')
        )
        then
            perform guard.queue_review(
                v_call.id, 'appointment_validation_failed',
                jsonb_build_object('booking_id', v_uid, 'appointment_id', appointment_id, 'mismatch', v_mismatch)
            );
            action := 'queued';
        end if;
    end if;
    perform guard.webhook_done('calcom', v_trigger, p_event, action);
    return next;
exception
    when invalid_datetime_format or datetime_field_overflow or invalid_text_representation then
        raise exception using
            errcode = 'ZG320',
            message = 'a time of the event cannot be read',
            hint = 'createdAt, startTime and endTime are ISO 8601 times.';
end
$$;

comment on function guard.handle_booking_event(jsonb) is
'Handle an event of the calendar: idempotent, in any order; returns the appointment and what was done.';

grant execute on function guard.handle_call_ended(jsonb) to guard_app;
grant execute on function guard.handle_booking_event(jsonb) to guard_app;
