-- What happened to a booking is heard of in any order, again, and before or after the process that booked has marked
-- and recorded it. Every order of every story is played, each with a call of its own, and all must end alike.
begin;
select plan(8);

-- what happens, whether the events name the call, and how it ends: the last uid, its state, its hour of the day
create temporary table stories (
    story text, steps text[], has_intent boolean, names_call boolean,
    last_uid integer, status text, hour integer, intent text
);
insert into stories values
('booked', '{created,mark,record}', true, true, 1, 'booked', 9, 'recorded'),
('moved twice', '{created,moved,moved_again,mark,record}', true, false, 3, 'booked', 11, 'recorded'),
('moved, cancelled', '{created,moved,cancelled,mark,record}', true, false, 2, 'cancelled', 10, 'compensated'),
('the same, named', '{created,moved,cancelled,mark,record}', true, true, 2, 'cancelled', 10, 'compensated'),
('another time', '{created,cancelled_first,moved,mark,record}', true, false, 2, 'booked', 10, 'recorded'),
('moved twice, cancelled', '{created,moved,moved_again,cancelled_last}', false, true, 3, 'cancelled', 11, null),
('the call comes too', '{created,moved,moved_again,call}', false, true, 3, 'booked', 11, null),
('the call comes too, cancelled', '{created,moved,cancelled,call}', false, true, 2, 'cancelled', 10, null);

create temporary table orders as
with recursive orders (story, played, waiting) as (
    select s.story, array[]::text[], s.steps from stories as s
    union all
    select o.story, o.played || w.step, array_remove(o.waiting, w.step)
    from orders as o
    cross join lateral unnest(o.waiting) as w (step)
    where w.step <> 'record' or 'mark' = any(o.played)
)

select row_number() over () as id, o.story, o.played from orders as o where o.waiting = '{}';

insert into public.companies (id, name) values (1, 'A');
insert into public.staff (id, company_id, name) values (1, 1, 'S');
insert into public.calls (id, company_id, direction, retell_call_id)
select o.id, 1, 'inbound', 'call_' || o.id from orders as o where 'call' <> all(o.played);
select setval(pg_get_serial_sequence('public.calls', 'id'), 100000);
select
    guard.begin_booking(o.id::text, o.id, jsonb_build_object(
        'staff_id', 1, 'starts_at', date '2030-01-01' + o.id::integer + time '09:00',
        'ends_at', date '2030-01-01' + o.id::integer + time '09:30'
    ))
from orders as o
inner join stories as s on o.story = s.story
where s.has_intent;

create function pg_temp.play(p_order bigint, p_step text, p_time integer)
returns text language plpgsql as $$
declare
    v_trigger text := case
        when p_step = 'created' then 'BOOKING_CREATED' when p_step ~ '^moved' then 'BOOKING_RESCHEDULED'
        when p_step ~ '^cancelled' then 'BOOKING_CANCELLED'
    end;
    v_uid integer := case
        when p_step in ('created', 'cancelled_first') then 1 when p_step in ('moved', 'cancelled') then 2 else 3
    end;
    v_day date := date '2030-01-01' + p_order::integer;
begin
    if p_step = 'mark' then
        return (guard.mark_remote_booked(p_order::text, p_order || '_1')).state;
    elsif p_step = 'record' then
        return (guard.record_booking(p_order::text, '{}')).state;
    elsif p_step = 'call' then
        return (select h.action from guard.handle_call_ended(jsonb_build_object(
            'event', 'call_ended', 'time', p_time, 'call', jsonb_build_object(
                'call_id', 'call_' || p_order, 'direction', 'inbound', 'metadata', '{"company_id": 1}'::jsonb
            )
        )) as h);
    end if;
    return (select h.action from guard.handle_booking_event(jsonb_build_object(
        'triggerEvent', v_trigger, 'time', p_time,
        'createdAt', timestamptz '2026-01-01 10:00+00' + case
            when p_step = 'created' then interval '0' when p_step = 'cancelled_first' then interval '1 minute'
            when p_step = 'moved' then interval '2 minutes' when p_step = 'moved_again' then interval '3 minutes'
            else interval '4 minutes'
        end,
        'payload', jsonb_strip_nulls(jsonb_build_object(
            'uid', p_order || '_' || v_uid,
            'rescheduleUid', case when v_trigger = 'BOOKING_RESCHEDULED' then p_order || '_' || v_uid - 1 end,
            'startTime', v_day + make_time(8 + v_uid, 0, 0), 'endTime', v_day + make_time(8 + v_uid, 30, 0),
            'metadata', case
                when (
                    select t.names_call from stories as t
                    inner join orders as o on o.story = t.story where o.id = p_order
                )
                    then jsonb_build_object('retell_call_id', 'call_' || p_order)
            end
        ))
    )) as h);
end
$$;

create view pg_temp.ends as
select
    o.id, o.story, o.played,
    (
        select
            jsonb_agg(jsonb_build_array(a.calcom_v2_booking_id, a.status, a.staff_id, a.starts_at, c.retell_call_id))
        from public.appointments as a
        left join public.calls as c on a.call_id = c.id
        where
            a.calcom_v2_booking_id = any(array[o.id || '_1', o.id || '_2', o.id || '_3']) and a.status <> 'rescheduled'
    ) as appointments,
    (
        select jsonb_build_array(c.appointment_made, c.session_outcome, c.appointment_link_status)
        from public.calls as c
        where c.retell_call_id = 'call_' || o.id
    ) as call,
    (
        select jsonb_build_array(i.state, i.booking_id, a.calcom_v2_booking_id)
        from guard.booking_intents as i
        left join public.appointments as a on i.appointment_id = a.id
        where i.key = o.id::text
    ) as intent,
    (
        select jsonb_object_agg(r.booking_id, jsonb_build_array(r.state, r.replaced_by) order by r.booking_id)
        from guard.remote_bookings as r
        where r.booking_id = any(array[o.id || '_1', o.id || '_2', o.id || '_3'])
    ) as remote
from orders as o;

create view pg_temp.expected as
select
    o.id, o.story, o.played,
    jsonb_build_array(jsonb_build_array(
        o.id || '_' || s.last_uid, s.status, case when s.has_intent then 1 end,
        timestamptz '2030-01-01 00:00+00' + o.id * interval '1 day' + s.hour * interval '1 hour', 'call_' || o.id
    )) as appointments,
    '[true, "appointment_booked", "linked"]'::jsonb as call,
    case
        when s.has_intent
            then jsonb_build_array(s.intent, o.id || '_' || s.last_uid, o.id || '_' || s.last_uid)
    end as intent,
    (
        select
            jsonb_object_agg(
                o.id || '_' || n,
                case
                    when n < s.last_uid then jsonb_build_array('superseded', o.id || '_' || n + 1)
                    else jsonb_build_array(case s.status when 'booked' then 'active' else s.status end, null)
                end
            )
        from generate_series(1, s.last_uid) as n
    ) as remote
from orders as o
inner join stories as s on o.story = s.story;

set local timezone = 'UTC';
select is((select count(*) from orders), 3 + 4 * 60 + 3 * 24::bigint, 'every order');
select lives_ok(
    $$do 'declare o record; s text; begin for o in select * from orders loop
        foreach s in array o.played loop perform pg_temp.play(o.id, s, 1); end loop;
    end loop; end'$$, 'no order is refused'
);
analyze public.calls, public.appointments, guard.booking_intents, guard.remote_bookings; -- no plan of empty tables
select is_empty(
    'select * from pg_temp.ends except select * from pg_temp.expected', 'every order of a story ends alike'
);
select is_empty($$select from guard.manual_review_queue where status <> 'resolved'$$, 'and nobody is asked');
select is_empty(
    $$select from guard.missing_appointment union all select from guard.orphaned_appointment$$, 'nor is there a phantom'
);
select lives_ok(
    'select pg_temp.play(o.id, o.played[1], 2) from orders as o', 'what came first again'
);
select is_empty('select * from pg_temp.ends except select * from pg_temp.expected', 'changes nothing');
select is_empty($$select from guard.manual_review_queue where status <> 'resolved'$$, 'and nobody is asked');

select * from finish();
rollback;
