-- provides: function guard.call_bookings(bigint)
-- provides: function guard.call_history(bigint)
--
-- What support staff ask first: all that is known of one call, whichever table it stands in. Phone numbers are masked.
-- Locks: none that a writer would wait for.

create or replace function guard.call_bookings(p_call_id bigint)
returns text[]
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select guard.booking_chain(array(
        select c.booking_id::text from public.calls as c where c.id = p_call_id and c.booking_id <> ''
        union
        select i.booking_id from guard.booking_intents as i where i.call_id = p_call_id
        union
        select r.booking_id from guard.remote_bookings as r where r.call_id = p_call_id
        union
        select a.calcom_v2_booking_id::text
        from public.appointments as a
        where a.call_id = p_call_id and a.calcom_v2_booking_id <> ''
    ))
$$;

comment on function guard.call_bookings(bigint) is
'The ids of the remote bookings that a call has to do with, also those that they replaced or that replaced them.';

-- {call: {...}, appointments: [...], ...}: of each list the 50 newest, oldest first; null if there is no such call.
-- What concerns its appointments is there too, also those that are deleted, as far as something still names them.
create or replace function guard.call_history(p_call_id bigint)
returns json
language plpgsql
stable
security definer -- the queue is worked by logins that may not read phone numbers; they get masked ones
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    c_most constant integer := 50;
    v_call json;
    v_retell_call_id text;
    v_bookings text[];
    v_appointments bigint[];
begin
    select row_to_json(x), x.retell_call_id into v_call, v_retell_call_id
    from (
        select
            c.id, c.company_id, c.retell_call_id, c.direction, c.status,
            '***' || right(c.from_number, 3) as from_number, '***' || right(c.to_number, 3) as to_number,
            c.customer_id, c.session_outcome, c.appointment_made, c.appointment_link_status, c.booking_id,
            c.booking_failed, guard.mask_phones(c.booking_failure_reason) as booking_failure_reason,
            c.requires_manual_processing, c.guard_corrections, guard.instant(c.created_at) as created_at,
            guard.instant(c.updated_at) as updated_at
        from public.calls as c
        where c.id = p_call_id
    ) as x;
    if not found then
        return null;
    end if;
    v_bookings := guard.call_bookings(p_call_id);
    v_appointments := array(
        select a.id from public.appointments as a
        where a.call_id = p_call_id or a.calcom_v2_booking_id = any(v_bookings)
        union
        select i.appointment_id from guard.booking_intents as i where i.call_id = p_call_id
        union
        select v.appointment_id from guard.validation_metrics as v where v.call_id = p_call_id
    );
    return json_build_object(
        'call', v_call,
        'appointments', (
            select coalesce(json_agg(x order by x.id), '[]')
            from (
                select
                    a.id, a.company_id, a.status, guard.instant(a.starts_at) as starts_at, guard.instant(a.ends_at) as ends_at,
                    a.staff_id, a.service_id, a.calcom_v2_booking_id as booking_id, a.source, a.call_id,
                    guard.instant(a.created_at) as created_at
                from public.appointments as a
                where a.id = any(v_appointments)
                order by a.id desc limit c_most
            ) as x
        ),
        'remote_bookings', (
            select coalesce(json_agg(x order by x.event_at, x.booking_id), '[]')
            from (
                select r.booking_id, r.state, r.replaced_by, r.starts_at, r.refused, r.event_at
                from guard.remote_bookings as r
                where r.booking_id = any(v_bookings)
                order by r.event_at desc limit c_most
            ) as x
        ),
        'intents', (
            select coalesce(json_agg(x order by x.created_at, x.key), '[]')
            from (
                select
                    i.key, i.state, i.booking_id, i.appointment_id,
                    guard.mask_phones(i.failure_reason) as failure_reason, i.created_at, i.updated_at
                from guard.booking_intents as i
                where i.call_id = p_call_id
                order by i.id desc limit c_most
            ) as x
        ),
        'validations', (
            select coalesce(json_agg(x order by x.created_at), '[]')
            from (
                select v.created_at, v.success, v.reason, v.appointment_id, v.duration_ms
                from guard.validation_metrics as v
                where v.call_id = p_call_id
                order by v.id desc limit c_most
            ) as x
        ),
        'webhook_events', (
            select coalesce(json_agg(x order by x.received_at), '[]')
            from (
                select w.received_at, w.source, w.event, w.payload #>> '{payload,uid}' as booking_id, w.action
                from guard.webhook_events as w
                where
                    coalesce(w.payload #>> '{call,call_id}', w.payload #>> '{payload,uid}')
                    = any(v_bookings || v_retell_call_id)
                order by w.id desc limit c_most
            ) as x
        ),
        'pending_checks', (
            select coalesce(json_agg(x order by x.due_at), '[]')
            from (
                select
                    p.due_at, case when p.call_id is null then 'appointment' else 'call' end as entity_type,
                    coalesce(p.call_id, p.appointment_id) as entity_id
                from guard.pending_checks as p
                where p.call_id = p_call_id or p.appointment_id = any(v_appointments)
                order by p.due_at desc limit c_most
            ) as x
        ),
        'incidents', (
            select coalesce(json_agg(x order by x.id), '[]')
            from (
                select
                    i.id, i.severity, i.status, i.rule, i.entity_type, i.entity_id, i.occurrences, i.assignee,
                    guard.mask_phones(i.note) as note, i.first_seen_at, i.last_seen_at, i.resolved_at
                from guard.incidents as i
                where
                    (i.entity_type = 'call' and i.entity_id = p_call_id)
                    or (i.entity_type = 'appointment' and i.entity_id = any(v_appointments))
                order by i.id desc limit c_most
            ) as x
        ),
        'baseline', (
            select coalesce(json_agg(x order by x.rule, x.entity_id), '[]')
            from (
                select b.rule, b.entity_type, b.entity_id, b.marked_at, b.cleared_at
                from guard.baseline as b
                where
                    (b.entity_type = 'call' and b.entity_id = p_call_id)
                    or (b.entity_type = 'appointment' and b.entity_id = any(v_appointments))
                order by b.marked_at desc limit c_most
            ) as x
        ),
        'alerts', (
            select coalesce(json_agg(x order by x.detected_at), '[]')
            from (
                select
                    a.detected_at, a.alert_type, a.severity, a.entity_type, a.entity_id, a.auto_corrected,
                    (
                        select
                            json_agg(json_build_object(
                                'column', m."column", 'before', guard.mask_value(m.before),
                                'after', guard.mask_value(m.after)
                            ))
                        from jsonb_to_recordset(a.metadata -> 'changes') as m (
                            "column" text, before jsonb, after jsonb
                        )
                        where jsonb_typeof(a.metadata -> 'changes') = 'array'
                    ) as changes
                from guard.data_consistency_alerts as a
                where
                    (a.entity_type = 'call' and a.entity_id = p_call_id)
                    or (a.entity_type = 'appointment' and a.entity_id = any(v_appointments))
                order by a.detected_at desc, a.id desc limit c_most
            ) as x
        ),
        'reviews', (
            select coalesce(json_agg(x order by x.id), '[]')
            from (
                select
                    q.id, q.priority, q.status, q.reason, q.assignee, guard.mask_phones(q.resolution) as resolution,
                    guard.without_phone_numbers(q.context) as context, q.created_at, q.resolved_at
                from guard.manual_review_queue as q
                where
                    q.call_id = p_call_id
                    or (q.subject <> '' and q.subject = any(v_bookings || v_retell_call_id))
                order by q.id desc limit c_most
            ) as x
        ),
        'messages', (
            select coalesce(json_agg(x order by x.created_at), '[]')
            from (
                select
                    n.created_at, n.severity, n.kind, n.entity_type, n.entity_id, n.message, m.created_at as told_at,
                    (
                        select json_agg(json_build_object('channel', d.channel, 'status', d.status) order by d.id)
                        from guard.deliveries as d
                        where d.message_id = m.id
                    ) as deliveries
                from guard.notifications as n
                left join guard.messages as m on n.message_id = m.id
                where
                    (n.entity_type = 'call' and n.entity_id = p_call_id)
                    or (n.entity_type = 'appointment' and n.entity_id = any(v_appointments))
                order by n.id desc limit c_most
            ) as x
        )
    );
end
$$;

comment on function guard.call_history(bigint) is
'All that is known of a call and its appointments, as JSON, phone numbers masked; null if there is no such call.';

grant execute on function guard.call_history(bigint) to guard_operator;
