-- provides: function guard.without_phone_numbers(jsonb)
-- provides: function guard.webhook_seen(text, text, jsonb)
-- provides: function guard.webhook_done(text, text, jsonb, text)
-- provides: function guard.handle_call_ended(jsonb)
-- provides: function guard.handle_booking_event(jsonb)
--
-- Webhooks of the phone agent (Retell) and the calendar (Cal.com). They come twice, late, and in any order; each is
-- handled once, by the digest of its payload, and kept whole but for phone numbers. The signature is checked before,
-- where the raw body is: see guard/webhooks.py.
-- Locks: an advisory transaction lock per phone call, so that its events are handled one by one; then those of
-- sql/functions/remote_bookings.sql, in the order that stands there.
-- Raises ZG320 (the payload is not what it should be).

-- Keys that name a number, a phone or what was said go, whatever is in them; of what stays each text is masked.
-- Ids are left as they are, so that an event can be found by them.
create or replace function guard.without_phone_numbers(p_payload jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_payload) = 'object' then
        return (
            select coalesce(
                jsonb_object_agg(e.key, case
                    when jsonb_typeof(e.value) = 'string' and e.key = any('{uid,rescheduleUid,call_id,retell_call_id}')
                        then e.value
                    else guard.without_phone_numbers(e.value)
                end),
                '{}'
            )
            from jsonb_each(p_payload) as e
            where e.key !~* 'number|phone|transcript|recording'
        );
    elsif jsonb_typeof(p_payload) = 'array' then
        return (
            select coalesce(jsonb_agg(guard.without_phone_numbers(e.value) order by e.place), '[]')
            from jsonb_array_elements(p_payload) with ordinality as e (value, place)
        );
    elsif jsonb_typeof(p_payload) = 'string' and p_payload::text ~ '\d' then
        return to_jsonb(guard.mask_phones(p_payload #>> '{}'));
    end if;
    return p_payload;
end
$$;

comment on function guard.without_phone_numbers(jsonb) is
'A payload without what may hold a phone number, at any depth; texts are masked.';

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
-- Bookings that were heard of before their call get their appointments now, before the call's row is locked.
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
    v_started_at timestamptz;
    v_stored public.calls;
begin
    perform pg_advisory_xact_lock(hashtextextended('guard.call ' || v_retell_id, 0));
    select c.id, c.company_id into call_id, v_company_id from public.calls as c where c.retell_call_id = v_retell_id;
    if guard.webhook_seen('retell', v_event, p_event) then
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
    if v_company_id is null then
        select c.id into v_company_id
        from unnest(array[
            v_call #>> '{metadata,company_id}', v_call #>> '{retell_llm_dynamic_variables,company_id}'
        ]) with ordinality as named (id, place)
        inner join public.companies as c on c.id = case when named.id ~ '^\d{1,18}$' then named.id::bigint end
        order by named.place
        limit 1;
    end if;
    if v_company_id is null then
        perform guard.queue_review(
            null, 'call_without_company',
            jsonb_build_object('subject', v_retell_id, 'retell_call_id', v_retell_id, 'event', v_event)
        );
        action := guard.webhook_done('retell', v_event, p_event, 'queued');
        return next;
        return;
    end if;

    perform set_config('timezone', guard.setting('app_timezone'), true);
    if call_id is null then
        v_started_at := to_timestamp((v_call ->> 'start_timestamp')::double precision / 1000);
        insert into public.calls (
            company_id, retell_call_id, direction, status, from_number, to_number, call_successful, created_at,
            updated_at
        )
        values (
            v_company_id, v_retell_id, coalesce(v_call ->> 'direction', 'inbound'),
            case when v_event = 'call_started' then 'ongoing' else 'ended' end,
            v_call ->> 'from_number', v_call ->> 'to_number',
            (v_call #>> '{call_analysis,call_successful}')::boolean, coalesce(v_started_at, now()), now()
        )
        returning id into call_id;
        action := 'created';
    end if;
    perform guard.sync_bookings(array(
        select r.booking_id
        from guard.remote_bookings as r
        where r.retell_call_id = v_retell_id and r.call_id is null
    ));
    if action is null then
        update public.calls as c
        set
            status = case when v_event = 'call_started' then coalesce(c.status, 'ongoing') else 'ended' end,
            direction = coalesce(c.direction, v_call ->> 'direction'),
            call_successful = coalesce((v_call #>> '{call_analysis,call_successful}')::boolean, c.call_successful),
            updated_at = now()
        where c.id = handle_call_ended.call_id
        returning c.* into v_stored;
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

-- A booking is made, moved (it gets a new uid, which replaces the old one) or cancelled: written down in
-- guard.remote_bookings, as the header of sql/functions/remote_bookings.sql says, and then carried out. An event whose
-- time is missing, or lies further in the future than clocks may differ, holds until one with a time comes.
-- action: created, updated, rescheduled, cancelled, duplicate, stale (older than what is known), ignored (another
-- trigger), queued (no call is known, or it does not match, or the appointment is refused).
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
    v_old_uid constant text := case
        when v_trigger = 'BOOKING_RESCHEDULED' and v_payload ->> 'rescheduleUid' not in (v_uid, '')
            then v_payload ->> 'rescheduleUid'
    end;
    v_call_id constant text := v_payload #>> '{metadata,call_id}';
    v_event_at timestamptz;
    v_known guard.remote_bookings;
    v_moved boolean := false;
begin
    perform guard.lock_bookings(array[v_old_uid, v_uid]);
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
    v_event_at := (p_event ->> 'createdAt')::timestamptz;
    if not isfinite(v_event_at) or v_event_at > now() + interval '5 minutes' then
        v_event_at := null;
    end if;

    select r.* into v_known from guard.remote_bookings as r where r.booking_id = v_uid;
    if v_old_uid is not null then
        insert into guard.remote_bookings as r (booking_id, state, replaced_by)
        values (v_old_uid, 'superseded', v_uid)
        on conflict (booking_id) do update
        set state = 'superseded', replaced_by = v_uid, updated_at = now()
        where r.replaced_by is distinct from v_uid;
        v_moved := found;
    end if;
    insert into guard.remote_bookings as r (
        booking_id, state, event_at, starts_at, ends_at, call_id, retell_call_id
    )
    values (
        v_uid, case v_trigger when 'BOOKING_CANCELLED' then 'cancelled' else 'active' end, v_event_at,
        (v_payload ->> 'startTime')::timestamptz, (v_payload ->> 'endTime')::timestamptz,
        (select c.id from public.calls as c where c.id = case when v_call_id ~ '^\d{1,18}$' then v_call_id::bigint end),
        v_payload #>> '{metadata,retell_call_id}'
    )
    on conflict (booking_id) do update
    set
        state = case r.state when 'active' then excluded.state else r.state end,
        event_at = greatest(r.event_at, excluded.event_at),
        starts_at = case
            when r.event_at > excluded.event_at then coalesce(r.starts_at, excluded.starts_at)
            else coalesce(excluded.starts_at, r.starts_at)
        end,
        ends_at = case
            when r.event_at > excluded.event_at then coalesce(r.ends_at, excluded.ends_at)
            else coalesce(excluded.ends_at, r.ends_at)
        end,
        call_id = coalesce(r.call_id, excluded.call_id),
        retell_call_id = coalesce(r.retell_call_id, excluded.retell_call_id),
        refused = null,
        updated_at = now();

    select s.appointment_id, s.action into appointment_id, action from guard.try_sync_booking(v_uid) as s;
    if not v_moved
        and (v_known.state <> 'active' or v_trigger <> 'BOOKING_CANCELLED' and v_event_at < v_known.event_at)
        and action in ('updated', 'cancelled')
    then
        action := 'stale';
    elsif v_trigger = 'BOOKING_RESCHEDULED' and action = 'updated' then
        action := 'rescheduled';
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
