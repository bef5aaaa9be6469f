-- provides: function guard.review_priority(text)
-- provides: function guard.queue_review(bigint, text, jsonb)
-- provides: function guard.take_review(text)
-- provides: function guard.resolve_review(bigint, text)
-- provides: function guard.release_review(bigint)
-- provides: function guard.process_review_queue()
--
-- What a person must decide. One open item per call and reason: queueing again refreshes it. Two people never get one
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

-- p_call_id may be null: then context -> subject tells the items of one reason apart.
-- Locks: the open item, if there is one.
create or replace function guard.queue_review(p_call_id bigint, p_reason text, p_context jsonb = '{}')
returns bigint
language plpgsql
volatile
security definer -- an application queues, and may not write the queue otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_context constant jsonb := coalesce(p_context, '{}');
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
    insert into guard.manual_review_queue as q (call_id, retell_call_id, subject, reason, context, priority)
    values (
        p_call_id, v_retell_call_id,
        case when p_call_id is null then left(coalesce(v_context ->> 'subject', ''), 200) else '' end,
        p_reason, v_context, guard.review_priority(p_reason)
    )
    on conflict (coalesce(call_id, 0), reason, subject) where status <> 'resolved' do update
    set context = q.context || excluded.context, updated_at = now()
    returning q.* into v_item;
    insert into guard.audit_log (action, object, after)
    values ('queue_review', 'review ' || v_item.id, jsonb_build_object('call_id', p_call_id, 'reason', p_reason));
    return v_item.id;
end
$$;

comment on function guard.queue_review(bigint, text, jsonb) is
'Ask a person: returns the open item of this call and reason, made or refreshed.';

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
    return v_after;
end
$$;

comment on function guard.resolve_review(bigint, text) is 'Close an item, saying how.';

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

-- The hourly retry: what was queued because a booking was not there, or not whole, is looked at again; where the call
-- now has its appointment and its flags agree, nobody need decide anything. An item is retried max_retry_attempts
-- times. Idempotent; a second session at the same time does nothing, and so does a standby.
create or replace function guard.process_review_queue()
returns table (examined integer, resolved integer)
language plpgsql
volatile
security definer -- a job's login need not be an operator
set search_path = pg_catalog, pg_temp
as $$
declare
    v_items bigint[];
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
        where
            q.status = 'pending'
            and q.call_id is not null
            and q.reason in ('appointment_validation_failed', 'calcom_booking_failed')
            and q.attempts < guard.setting('max_retry_attempts')::integer
        order by q.priority, q.created_at
        limit 1000
        for update skip locked
    ),
    tried as (
        update guard.manual_review_queue as q
        set attempts = q.attempts + 1, updated_at = now()
        from due as d
        where q.id = d.id
        returning q.id
    )
    select array_agg(t.id), count(*) into v_items, examined from tried as t;

    perform guard.resolve_review(q.id, 'the call has its appointment now')
    from guard.manual_review_queue as q
    inner join public.calls as c on q.call_id = c.id
    where
        q.id = any(v_items)
        and c.appointment_made
        and c.session_outcome = 'appointment_booked'
        and c.appointment_link_status = 'linked'
        and exists (select from public.appointments as a where a.call_id = c.id and a.company_id = c.company_id)
        and not exists (
            select from guard.booking_intents as i
            where i.call_id = c.id and i.booking_id is not null and i.appointment_id is null
        )
        and not exists (select from guard.remote_bookings as r where r.call_id = c.id and r.refused is not null);
    get diagnostics resolved = row_count;
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
