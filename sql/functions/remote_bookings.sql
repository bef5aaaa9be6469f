-- provides: function guard.booking_chain(text[])
-- provides: function guard.lock_bookings(text[])
-- provides: function guard.current_booking(text[])
-- provides: function guard.call_of_chain(text[])
-- provides: function guard.settle_booking_reviews(text[], text, text)
-- provides: function guard.is_refusal(text)
-- provides: function guard.sync_booking(text)
-- provides: function guard.try_sync_booking(text)
-- provides: function guard.sync_bookings(text[])
-- provides: function guard.sync_waiting_bookings()
--
-- A booking of the calendar and its appointment here. Whatever is heard of a booking, from a webhook or from the
-- process that booked, is first written down in guard.remote_bookings, in a way that does not depend on the order:
-- superseded outlasts cancelled, cancelled outlasts active, and times are those of the newest event. Then
-- guard.sync_booking brings the appointment of the whole chain to what is written there. So every order of events and
-- every repetition ends alike: one appointment, with the uid, the times and the state of the chain's last booking; if
-- that was cancelled, a cancelled appointment.
--
-- A chain: a reschedule gives a booking a new uid, which replaces the old one. Intents follow to the new uid too.
--
-- Locks. One order everywhere, for webhooks, booking processes, recovery and the hourly job:
-- 1. guard.lock_bookings: an advisory lock for each booking of the chains, all chains of a transaction at once;
-- 2. the intents of the chain, in the order of their ids;
-- 3. its appointments; 4. the call, by the triggers of appointments; 5. review items.
-- What an intent of another transaction is being marked with is not seen, and so not waited for: its
-- guard.record_booking waits for the chain, and finds what was written down.
--
-- Small queries are plpgsql functions: these keep their plans, and an event asks for the chain several times.

create or replace function guard.booking_chain(p_bookings text[])
returns text[]
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        with recursive chain (booking_id) as (
            select b.booking_id from unnest(p_bookings) as b (booking_id) where b.booking_id is not null
            union
            select linked.booking_id
            from chain as c
            cross join lateral (
                select r.replaced_by from guard.remote_bookings as r
                where r.booking_id = c.booking_id and r.replaced_by is not null
                union all
                select r.booking_id from guard.remote_bookings as r where r.replaced_by = c.booking_id
            ) as linked (booking_id)
        )

        select coalesce(array_agg(c.booking_id order by c.booking_id), '{}') from chain as c
    );
end
$$;

comment on function guard.booking_chain(text[]) is
'These remote bookings, those that they replaced, and those that replaced them.';

-- While it waited the chain may have grown: then it gives the locks back, and begins anew with the longer chain, since
-- to lock the rest as well could be out of order.
create or replace function guard.lock_bookings(p_bookings text[])
returns text[]
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_chain text[];
begin
    loop
        v_chain := guard.booking_chain(p_bookings);
        begin
            perform pg_advisory_xact_lock(hashtextextended('guard.booking ' || b.booking_id, 0))
            from unnest(v_chain) as b (booking_id);
            exit when guard.booking_chain(p_bookings) = v_chain;
            raise exception using errcode = 'ZG321', message = 'the chain has grown';
        exception
            when sqlstate 'ZG321' then
                null;
        end;
    end loop;
    return v_chain;
end
$$;

comment on function guard.lock_bookings(text[]) is
'Lock remote bookings with their chains until the transaction ends, before anything else; returns all that are locked.';

create or replace function guard.current_booking(p_chain text[])
returns guard.remote_bookings
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_current guard.remote_bookings;
begin
    select r.* into v_current
    from guard.remote_bookings as r
    where r.booking_id = any(p_chain)
    order by r.state = 'superseded', r.event_at desc nulls last, r.booking_id
    limit 1;
    return v_current;
end
$$;

comment on function guard.current_booking(text[]) is 'The booking that stands at the end of a chain.';

-- Materialized: a plan that was made while calls was empty must not ask all this again for each call.
create or replace function guard.call_of_chain(p_chain text[])
returns bigint
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        with heard as materialized (
            select r.call_id, r.retell_call_id from guard.remote_bookings as r where r.booking_id = any(p_chain)
        ),
        known as materialized (
            select 1 as rank, a.call_id
            from public.appointments as a
            where a.calcom_v2_booking_id = any(p_chain)
            union all
            select 2, i.call_id from guard.booking_intents as i where i.booking_id = any(p_chain)
            union all
            select 3, min(k.id) from public.calls as k where k.booking_id = any(p_chain) having count(*) = 1
            union all
            select 4, h.call_id from heard as h
            union all
            select 5, k.id from heard as h inner join public.calls as k on h.retell_call_id = k.retell_call_id
        )

        select c.id
        from known as k
        inner join public.calls as c on k.call_id = c.id
        order by k.rank, c.id
        limit 1
    );
end
$$;

comment on function guard.call_of_chain(text[]) is
'The call of a chain: by appointment, intent, calls.booking_id, or the ids in its metadata; null if none is known.';

-- What was asked about bookings whose call was not known: p_booking_id is the current one of the chain, p_action what
-- guard.sync_booking did about it.
create or replace function guard.settle_booking_reviews(p_chain text[], p_booking_id text, p_action text)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    perform guard.resolve_review(q.id, case p_action
        when 'cancelled' then 'the calendar has cancelled the booking'
        when 'queued' then 'the booking was moved to ' || p_booking_id
        else 'the booking has its appointment now'
    end)
    from (
        select n.id
        from guard.manual_review_queue as n
        where
            coalesce(n.call_id, 0) = 0
            and n.reason::text = any('{booking_without_call,appointment_validation_failed}')
            and n.subject = any(p_chain)
            and n.status <> 'resolved'
            and (p_action <> 'queued' or n.subject <> p_booking_id)
        for no key update
    ) as q;
    if p_action = 'queued' then
        perform guard.queue_review(
            null, 'booking_without_call', jsonb_build_object('subject', p_booking_id, 'booking_id', p_booking_id)
        );
    end if;
end
$$;

comment on function guard.settle_booking_reviews(text[], text, text) is
'Close what was asked about the bookings of a chain, or ask whose booking it is while no call is known.';

-- No refusal says nothing about the data: a conflict with another session, a missing right, a lock or resource that is
-- not to be had, an operator, the system. Anything else is one: the application's own triggers refuse with any SQLSTATE.
create or replace function guard.is_refusal(p_sqlstate text)
returns boolean
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select p_sqlstate <> all('{40001,40P01,42501}') and left(p_sqlstate, 2) <> all('{53,55,57,58,XX}')
$$;

comment on function guard.is_refusal(text) is
'Whether an error with this SQLSTATE means that the tables, their triggers or constraints refuse what was written.';

-- The caller holds guard.lock_bookings, and has written down what it heard. What the appointment's columns lack is
-- taken from the intent's request; what they have stays, but for uid and times, which are the calendar's. Where events
-- came in an order that made two appointments of one chain, the one that is not current is retired as rescheduled.
-- A booking that is moved although it was cancelled is booked again: that is how a host asks for another time.
-- action: created, updated, cancelled, or queued: no call is known, a person is asked.
-- Raises what the tables, their triggers and constraints refuse.
create or replace function guard.sync_booking(p_booking_id text)
returns table (appointment_id bigint, action text)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_chain constant text[] := guard.booking_chain(array[p_booking_id]);
    v_remote constant guard.remote_bookings := guard.current_booking(v_chain);
    v_call_id constant bigint := guard.call_of_chain(v_chain);
    v_intents bigint[];
    v_request jsonb;
    v_appointment_id bigint;
    v_customer_id bigint;
    v_service_id bigint;
    v_staff_id bigint;
    v_starts_at timestamptz;
    v_ends_at timestamptz;
begin
    select array_agg(i.id), (array_agg(i.request))[1] into v_intents, v_request
    from (
        select n.id, n.request
        from guard.booking_intents as n
        where n.booking_id = any(v_chain)
        order by n.id
        for no key update
    ) as i;
    select
        (array_agg(a.id))[1],
        (array_agg(a.customer_id) filter (where a.customer_id is not null))[1],
        (array_agg(a.service_id) filter (where a.service_id is not null))[1],
        (array_agg(a.staff_id) filter (where a.staff_id is not null))[1]
    into v_appointment_id, v_customer_id, v_service_id, v_staff_id
    from (
        select n.*
        from public.appointments as n
        where n.calcom_v2_booking_id = any(v_chain)
        order by
            n.calcom_v2_booking_id = v_remote.booking_id desc,
            n.status::text = any('{cancelled,rejected,rescheduled}'),
            n.id
    ) as a;
    v_customer_id := coalesce(v_customer_id, (v_request ->> 'customer_id')::bigint);
    v_service_id := coalesce(v_service_id, (v_request ->> 'service_id')::bigint);
    v_staff_id := coalesce(v_staff_id, (v_request ->> 'staff_id')::bigint);
    v_starts_at := (v_request ->> 'starts_at')::timestamptz;
    v_ends_at := (v_request ->> 'ends_at')::timestamptz;

    perform set_config('timezone', guard.setting('app_timezone'), true);
    if v_appointment_id is not null then
        update public.appointments as a
        set
            status = case a.calcom_v2_booking_id when v_remote.booking_id then 'cancelled' else 'rescheduled' end,
            updated_at = now()
        where
            a.calcom_v2_booking_id = any(v_chain)
            and a.id <> v_appointment_id
            and (v_remote.state = 'cancelled' or a.calcom_v2_booking_id <> v_remote.booking_id)
            and a.status <> 'rescheduled';
        update public.appointments as a
        set
            calcom_v2_booking_id = v_remote.booking_id,
            call_id = coalesce(a.call_id, v_call_id),
            customer_id = coalesce(a.customer_id, v_customer_id),
            service_id = coalesce(a.service_id, v_service_id),
            staff_id = coalesce(a.staff_id, v_staff_id),
            status = case
                when v_remote.state = 'cancelled' then 'cancelled'
                when
                    a.calcom_v2_booking_id <> v_remote.booking_id
                    and a.status::text = any('{cancelled,rescheduled}')
                    then 'booked'
                else a.status
            end,
            starts_at = coalesce(v_remote.starts_at, a.starts_at, v_starts_at),
            ends_at = coalesce(v_remote.ends_at, a.ends_at, v_ends_at),
            updated_at = now()
        where a.id = v_appointment_id;
        action := 'updated';
    elsif v_call_id is not null then
        begin
            insert into public.appointments (
                company_id, call_id, customer_id, service_id, staff_id, calcom_v2_booking_id, source, status, starts_at,
                ends_at, created_at, updated_at
            )
            select
                c.company_id, c.id, v_customer_id, v_service_id, v_staff_id, v_remote.booking_id,
                coalesce(v_request ->> 'source', 'retell_webhook'),
                case
                    when v_remote.state = 'cancelled' then 'cancelled'
                    else coalesce(v_request ->> 'status', 'booked')
                end,
                coalesce(v_remote.starts_at, v_starts_at), coalesce(v_remote.ends_at, v_ends_at), now(), now()
            from public.calls as c
            where c.id = v_call_id
            returning id into v_appointment_id;
        exception
            when others then
                -- what is cancelled needs no appointment; anything else does
                if v_remote.state <> 'cancelled' or not guard.is_refusal(sqlstate) then
                    raise;
                end if;
        end;
        action := 'created';
    end if;
    appointment_id := v_appointment_id;
    if v_remote.state = 'cancelled' then
        action := 'cancelled';
    elsif v_appointment_id is null then
        action := 'queued';
    end if;

    update guard.booking_intents as i
    set
        booking_id = v_remote.booking_id,
        appointment_id = coalesce(v_appointment_id, i.appointment_id),
        state = case
            when v_remote.state = 'cancelled' then 'compensated'
            when i.state = 'compensated' and v_appointment_id is not null then 'recorded'
            else i.state
        end,
        updated_at = now()
    where i.id = any(v_intents);
    -- also where it changes nothing: of two REPEATABLE READ transactions that cannot see each other's one must fail
    update guard.remote_bookings as r
    set call_id = coalesce(v_call_id, r.call_id), refused = null, updated_at = now()
    where r.booking_id = any(v_chain);

    perform guard.settle_booking_reviews(v_chain, v_remote.booking_id, action);
    return next;
end
$$;

comment on function guard.sync_booking(text) is
'Bring the appointment of a booking''s chain to what the calendar said of it, and its intents with it.';

-- What is refused stays as it was, but is not lost: it is marked, a person is asked, and the hourly job tries again.
-- Raises what is no refusal; the event will come again.
create or replace function guard.try_sync_booking(p_booking_id text)
returns table (appointment_id bigint, action text)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_chain text[];
    v_remote guard.remote_bookings;
    v_call_id bigint;
    v_mismatch text;
    v_constraint text;
begin
    select s.appointment_id, s.action into appointment_id, action from guard.sync_booking(p_booking_id) as s;
    select a.call_id into v_call_id from public.appointments as a where a.id = appointment_id;
    if action <> 'cancelled' and v_call_id is not null then
        select c.reason into v_mismatch from guard.check_booking(v_call_id, appointment_id, null, false) as c;
        if v_mismatch is not null then
            perform guard.queue_review(
                v_call_id, 'appointment_validation_failed',
                jsonb_build_object(
                    'booking_id', p_booking_id, 'appointment_id', appointment_id, 'mismatch', v_mismatch
                )
            );
            action := 'queued';
        end if;
    end if;
    perform guard.settle_calls(array[v_call_id]);
    return next;
exception
    when others then
        if not guard.is_refusal(sqlstate) then
            raise;
        end if;
        get stacked diagnostics v_constraint = constraint_name;
        v_chain := guard.booking_chain(array[p_booking_id]);
        v_remote := guard.current_booking(v_chain);
        v_call_id := guard.call_of_chain(v_chain);
        update guard.remote_bookings as r
        set refused = sqlstate, call_id = coalesce(v_call_id, r.call_id), updated_at = now()
        where r.booking_id = v_remote.booking_id;
        if v_remote.refused is null then
            perform guard.queue_review(
                v_call_id, 'appointment_validation_failed',
                jsonb_build_object(
                    'subject', v_remote.booking_id, 'booking_id', v_remote.booking_id, 'sqlstate', sqlstate,
                    'constraint', v_constraint, 'starts_at', v_remote.starts_at, 'ends_at', v_remote.ends_at,
                    'note', 'the calendar holds this booking, and the appointment is refused here: change one of them'
                )
            );
        end if;
        select min(a.id) into appointment_id
        from public.appointments as a
        where a.calcom_v2_booking_id = any(v_chain);
        action := 'queued';
        return next;
end
$$;

comment on function guard.try_sync_booking(text) is
'Bring an appointment to what the calendar said, or, where that is refused, ask a person.';

-- One that raises holds up neither the others nor its call: it goes on waiting, behind the others.
create or replace function guard.sync_bookings(p_bookings text[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_booking_id text;
begin
    perform guard.lock_bookings(p_bookings);
    foreach v_booking_id in array p_bookings loop
        begin
            perform guard.try_sync_booking(v_booking_id);
        exception
            when serialization_failure or deadlock_detected then
                raise;
            when others then
                perform guard.note_fault('sync_bookings', sqlstate, sqlerrm);
                update guard.remote_bookings as r set updated_at = now() where r.booking_id = v_booking_id;
        end;
    end loop;
end
$$;

comment on function guard.sync_bookings(text[]) is
'Bring the appointments of several bookings to what the calendar said.';

-- The longest waiting first: each try moves a booking to the end.
create or replace function guard.sync_waiting_bookings()
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    perform guard.sync_bookings(array(
        select waiting.booking_id
        from (
            select r.booking_id, r.updated_at
            from guard.remote_bookings as r
            where r.refused is not null
            union
            select r.booking_id, r.updated_at
            from guard.manual_review_queue as q
            inner join guard.remote_bookings as r on q.subject = r.booking_id
            where
                coalesce(q.call_id, 0) = 0
                and q.reason = 'booking_without_call'
                and q.status <> 'resolved'
                and guard.call_of_chain(guard.booking_chain(array[r.booking_id])) is not null
        ) as waiting
        order by waiting.updated_at
        limit 100
    ));
end
$$;

comment on function guard.sync_waiting_bookings() is
'Try again what was refused, and what waited for a call that is known by now.';
