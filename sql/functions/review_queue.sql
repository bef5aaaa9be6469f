-- provides: function guard.review_priority(text)
-- provides: function guard.add_context(jsonb, jsonb)
-- provides: function guard.queue_review(bigint, text, jsonb)
-- provides: function guard.take_review(text)
-- provides: function guard.resolve_review(bigint, text)
-- provides: function guard.release_review(bigint)
-- provides: function guard.booked_calls(bigint[])
-- provides: function guard.clear_failures(bigint[])
-- provides: function guard.settle_calls(bigint[])
-- provides: function guard.process_review_queue()
--
-- What a person must decide. One open item per call and reason: queueing again adds to it. Two people never get one
-- item: taking skips what another session has locked. Every action has its line in the audit log.
-- Raises ZG301 (no such call), ZG302 (reason), ZG303 (context), ZG304 (no such item), ZG305 (the item is not in a
-- state for this), ZG306 (assignee or resolution).

create or replace function guard.review_priority(p_reason text)
returns integer
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case p_reason
        when 'appointment_validation_failed' then 1
        when 'missing_appointment' then 1
        when 'calcom_booking_failed' then 2
        when 'customer_creation_failed' then 3
        when 'service_not_found' then 4
        else 5
    end
$$;

comment on function guard.review_priority(text) is 'How urgent a reason is: 1, the most urgent, to 5.';

-- What the new context contradicts, another booking's id say, is kept under `earlier`, each context once. A question about
-- an intent is not mixed with what is about none: the intents answer the one, a person the other.
create or replace function guard.add_context(p_known jsonb, p_new jsonb)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_known @> p_new or p_known -> 'earlier' @> jsonb_build_array(p_new) then p_known
        when
            (p_known || p_new) @> p_known
            and (p_known ? 'intent_id' = p_new ? 'intent_id' or not (p_known || p_new) ? 'question')
            then p_known || p_new
        else p_new || jsonb_build_object(
            'earlier', coalesce(p_known -> 'earlier', '[]') || jsonb_build_array(p_known - 'earlier')
        )
    end
$$;

comment on function guard.add_context(jsonb, jsonb) is
'The context of a review item with a new one added: the newest on top, what it contradicts under earlier.';

-- p_call_id may be null: then context -> subject tells the items of one reason apart. An item whose context is full is
-- continued in another one, whose subject ends with a plus sign: nothing that a person is told of is dropped.
-- A reason is what lists and views show: phone numbers in it are masked.
-- Locks: the open item, if there is one.
create or replace function guard.queue_review(p_call_id bigint, p_reason text, p_context jsonb = '{}')
returns bigint
language plpgsql
volatile
security definer -- an application queues, and may not write the queue otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_reason constant text := guard.mask_phones(p_reason);
    v_context constant jsonb := coalesce(p_context, '{}');
    v_subject text := case when p_call_id is null then left(coalesce(v_context ->> 'subject', ''), 200) else '' end;
    v_retell_call_id text;
    v_item guard.manual_review_queue;
begin
    if coalesce(p_reason, '') = '' or length(p_reason) > 100 then
        raise exception using
            errcode = 'ZG302',
            message = 'a review needs a reason of 1 to 100 characters',
            hint = 'Use a word such as appointment_validation_failed.';
    end if;
    if jsonb_typeof(v_context) <> 'object' or pg_column_size(v_context) > 65536 then
        raise exception using
            errcode = 'ZG303',
            message = 'the context of a review is a JSON object of at most 64 kB',
            hint = 'Put ids into it, and leave the payload where it is.';
    end if;
    if p_call_id is not null then
        select c.retell_call_id into v_retell_call_id from public.calls as c where c.id = p_call_id;
        if not found then
            raise exception using
                errcode = 'ZG301',
                message = format('there is no call %s', p_call_id),
                hint = 'Queue with a null call and a subject in the context if the call is not known.';
        end if;
    end if;
    loop
        insert into guard.manual_review_queue as q (call_id, retell_call_id, subject, reason, context, priority)
        values (p_call_id, v_retell_call_id, v_subject, v_reason, v_context, guard.review_priority(v_reason))
        on conflict (coalesce(call_id, 0), reason, subject) where status <> 'resolved' do update
        set context = guard.add_context(q.context, excluded.context), attempts = 0, updated_at = now()
        where pg_column_size(guard.add_context(q.context, excluded.context)) <= 65536
        returning q.* into v_item;
        exit when found;
        v_subject := v_subject || '+';
    end loop;
    insert into guard.audit_log (action, object, after)
    values ('queue_review', 'review ' || v_item.id, jsonb_build_object('call_id', p_call_id, 'reason', v_reason));
    return v_item.id;
end
$$;

comment on function guard.queue_review(bigint, text, jsonb) is
'Ask a person: returns the open item of this call and reason, made or added to.';

-- Returns no row when nothing is pending. Locks: the item taken; skips what others have locked.
create or replace function guard.take_review(p_assignee text)
returns setof guard.manual_review_queue
language plpgsql
volatile
security definer -- operators may change an item only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_item guard.manual_review_queue;
begin
    if coalesce(p_assignee, '') = '' or length(p_assignee) > 200 then
        raise exception using errcode = 'ZG306', message = 'an item is taken by somebody', hint = 'Give a name.';
    end if;
    update guard.manual_review_queue as q
    set status = 'in_progress', assignee = p_assignee, assigned_at = now(), updated_at = now()
    where
        q.id = (
            select n.id
            from guard.manual_review_queue as n
            where n.status = 'pending'
            order by n.priority, n.created_at, n.id
            limit 1
            for update skip locked
        )
    returning q.* into v_item;
    if found then
        insert into guard.audit_log (action, object, after)
        values ('take_review', 'review ' || v_item.id, jsonb_build_object('assignee', p_assignee));
        return next v_item;
    end if;
end
$$;

comment on function guard.take_review(text) is 'Take the most urgent pending item; no row when there is none.';

-- Locks: the call, then the item, as guard.rollback_booking does.
create or replace function guard.resolve_review(p_id bigint, p_resolution text)
returns guard.manual_review_queue
language plpgsql
volatile
security definer -- operators may change an item only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.manual_review_queue;
    v_after guard.manual_review_queue;
begin
    if coalesce(p_resolution, '') = '' or length(p_resolution) > 2000 then
        raise exception using
            errcode = 'ZG306',
            message = 'a resolution has 1 to 2000 characters',
            hint = 'Say what was done about it.';
    end if;
    perform 1
    from public.calls as c
    where c.id = (select q.call_id from guard.manual_review_queue as q where q.id = p_id)
    for no key update;
    select q.* into v_before from guard.manual_review_queue as q where q.id = p_id for no key update;
    if not found then
        raise exception using
            errcode = 'ZG304', message = format('there is no review item %s', p_id), hint = 'guard review list';
    elsif v_before.status = 'resolved' then
        raise exception using
            errcode = 'ZG305',
            message = format('review item %s is resolved already', p_id),
            hint = 'Queue the call again if there is something new.';
    end if;
    update guard.manual_review_queue as q
    set
        status = 'resolved', assignee = coalesce(q.assignee, session_user), resolution = p_resolution,
        resolved_at = now(), updated_at = now()
    where q.id = p_id
    returning q.* into v_after;
    insert into guard.audit_log (action, object, reason, before, after)
    values (
        'resolve_review', 'review ' || p_id, p_resolution,
        jsonb_build_object('status', v_before.status), jsonb_build_object('status', v_after.status)
    );
    perform guard.clear_failures(array[v_after.call_id]);
    return v_after;
end
$$;

comment on function guard.resolve_review(bigint, text) is
'Close an item, saying how; with its last one a call no longer requires manual processing.';

create or replace function guard.release_review(p_id bigint)
returns guard.manual_review_queue
language plpgsql
volatile
security definer -- operators may change an item only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.manual_review_queue;
    v_after guard.manual_review_queue;
begin
    select q.* into v_before from guard.manual_review_queue as q where q.id = p_id for no key update;
    if not found then
        raise exception using
            errcode = 'ZG304', message = format('there is no review item %s', p_id), hint = 'guard review list';
    elsif v_before.status <> 'in_progress' then
        raise exception using
            errcode = 'ZG305',
            message = format('review item %s is %s: nobody has taken it', p_id, v_before.status),
            hint = 'Only an item in progress can be given back.';
    end if;
    update guard.manual_review_queue as q
    set status = 'pending', assignee = null, assigned_at = null, updated_at = now()
    where q.id = p_id
    returning q.* into v_after;
    insert into guard.audit_log (action, object, before)
    values ('release_review', 'review ' || p_id, jsonb_build_object('assignee', v_before.assignee));
    return v_after;
end
$$;

comment on function guard.release_review(bigint) is 'Give an item back that was taken.';

create or replace function guard.booked_calls(p_calls bigint[])
returns setof bigint
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select c.id
    from public.calls as c
    where
        c.id = any(p_calls)
        and c.appointment_made
        and c.session_outcome = 'appointment_booked'
        and c.appointment_link_status = 'linked'
        and exists (
            select
            from public.appointments as a
            left join guard.remote_bookings as r on a.calcom_v2_booking_id = r.booking_id
            where
                a.call_id = c.id
                and a.company_id = c.company_id
                and (a.status::text <> all('{cancelled,rejected,rescheduled}') or r.state = 'cancelled')
        )
$$;

comment on function guard.booked_calls(bigint[]) is
'Those of the calls that say they are booked and have an appointment: one that stands, or that the calendar cancelled.';

-- A call that is booked has not failed, and one that nobody is asked about requires nobody. updated_at stays: the row
-- has nothing new for a rule to judge. An alert keeps what the call said: the application may have written it.
-- Locks: the calls' rows that change. The caller has locked them, so that the values before are the last ones.
create or replace function guard.clear_failures(p_calls bigint[])
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with cleared as (
        update public.calls as c
        set
            booking_failed = c.booking_failed and not truth.booked,
            booking_failure_reason = case when not truth.booked then c.booking_failure_reason end,
            requires_manual_processing = c.requires_manual_processing and truth.asked
        from (
            select
                k.call_id,
                k.call_id in (select b.call_id from guard.booked_calls(p_calls) as b (call_id)) as booked,
                exists (
                    select from guard.manual_review_queue as q where q.call_id = k.call_id and q.status <> 'resolved'
                ) as asked
            from unnest(p_calls) as k (call_id)
        ) as truth
        where
            c.id = truth.call_id
            and (c.booking_failed and truth.booked or c.requires_manual_processing and not truth.asked)
        returning c.*
    )

    insert into guard.data_consistency_alerts (
        alert_type, severity, entity_type, entity_id, company_id, description, metadata, auto_corrected, corrected_at
    )
    select
        'failure_cleared', 'info', 'call', n.id, n.company_id,
        'the call is booked, or nobody is asked about it any more: it no longer says otherwise',
        jsonb_build_object('changes', guard.changes(to_jsonb(o), to_jsonb(n))), true, now()
    from cleared as n
    inner join public.calls as o on n.id = o.id
$$;

comment on function guard.clear_failures(bigint[]) is
'Have calls no longer say that they failed, if they are booked, or need a person, if nobody is asked.';

-- Where a call now has its appointment and its flags agree, nobody need decide anything; unless the calendar may hold
-- a booking of it that no appointment records, or that was cancelled here only: a person must decide that.
-- Locks: the calls of which there is something to settle, then their pending items, skipping those that others have
-- locked.
create or replace function guard.settle_calls(p_calls bigint[])
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_calls constant bigint[] := array(
        select c.id
        from public.calls as c
        where
            c.id = any(p_calls)
            and (
                c.booking_failed
                or c.requires_manual_processing
                or exists (select from guard.manual_review_queue as q where q.call_id = c.id and q.status = 'pending')
            )
        order by c.id
        for no key update
    );
    v_items bigint[];
begin
    v_items := array(
        select q.id
        from guard.manual_review_queue as q
        where
            q.call_id in (select b.call_id from guard.booked_calls(v_calls) as b (call_id))
            and q.status = 'pending'
            and q.reason = any('{appointment_validation_failed,calcom_booking_failed,missing_appointment}')
            -- what is asked about an intent is answered by the intents
            and not q.context @? '$.** ? (exists (@.question) && !exists (@.intent_id))'
            and not exists (
                select from guard.booking_intents as i
                where
                    i.call_id = q.call_id
                    and i.state <> 'compensated'
                    and (i.booking_id is not null or i.failure_reason = 'outcome_unknown')
                    and not exists (
                        select from public.appointments as a
                        where
                            a.calcom_v2_booking_id = i.booking_id
                            and a.call_id = i.call_id
                            and a.status::text <> all('{cancelled,rejected,rescheduled}')
                    )
            )
            and not exists (
                select
                from guard.remote_bookings as r
                left join public.appointments as a on r.booking_id = a.calcom_v2_booking_id
                where
                    r.call_id = q.call_id
                    and (
                        r.refused is not null
                        or r.state = 'active' and a.status::text = any('{cancelled,rejected,rescheduled}')
                    )
            )
        for no key update skip locked
    );
    perform guard.resolve_review(i.id, 'the call has its appointment now') from unnest(v_items) as i (id);
    perform guard.clear_failures(v_calls);
    return cardinality(v_items);
end
$$;

comment on function guard.settle_calls(bigint[]) is
'Close what was queued for want of an appointment that is there now, and clear the calls'' flags; returns how many.';

-- The hourly retry: what was queued because a booking was not there, or not whole, is looked at again. An item is
-- retried max_retry_attempts times, and anew when it is added to. Idempotent; a second session at the same time does
-- nothing, and so does a standby.
-- Locks: the bookings that wait, as in sql/functions/remote_bookings.sql; then the items and their calls, of which what
-- others have locked is left for the next time.
create or replace function guard.process_review_queue()
returns table (examined integer, resolved integer)
language plpgsql
volatile
security definer -- a job's login need not be an operator
set search_path = pg_catalog, pg_temp
as $$
declare
    v_calls bigint[];
begin
    examined := 0;
    resolved := 0;
    if pg_is_in_recovery() or not pg_try_advisory_xact_lock(hashtext('guard.process_review_queue')) then
        return next;
        return;
    end if;
    perform guard.sync_waiting_bookings();
    with due as (
        select q.id
        from guard.manual_review_queue as q
        inner join public.calls as c on q.call_id = c.id
        where
            q.status = 'pending'
            and q.reason = any('{appointment_validation_failed,calcom_booking_failed,missing_appointment}')
            and q.attempts < guard.setting('max_retry_attempts')::integer
        order by q.priority, q.created_at
        limit 1000
        for no key update of q, c skip locked
    ),
    tried as (
        update guard.manual_review_queue as q
        set attempts = q.attempts + 1, updated_at = now()
        from due as d
        where q.id = d.id
        returning q.call_id
    )
    select array_agg(distinct t.call_id), count(*) into v_calls, examined from tried as t;
    resolved := guard.settle_calls(v_calls);
    return next;
end
$$;

comment on function guard.process_review_queue() is
'Look again at what was queued for want of an appointment, and close what has come right by itself.';

grant execute on function guard.queue_review(bigint, text, jsonb) to guard_app, guard_operator;
grant execute on function guard.take_review(text) to guard_operator;
grant execute on function guard.resolve_review(bigint, text) to guard_operator;
grant execute on function guard.release_review(bigint) to guard_operator;
grant execute on function guard.process_review_queue() to guard_operator;
