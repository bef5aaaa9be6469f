-- What the calendar says and a constraint refuses here is not lost: it is kept, a person is asked, and it is tried again.
begin;
select plan(19);

create function pg_temp.event(p_trigger text, p_uid text, p_old_uid text, p_starts_at text, p_time integer = 1)
returns jsonb language sql as $$
    select jsonb_build_object('triggerEvent', p_trigger, 'time', p_time, 'payload', jsonb_build_object(
        'uid', p_uid, 'rescheduleUid', p_old_uid,
        'startTime', p_starts_at::timestamptz, 'endTime', p_starts_at::timestamptz + interval '30 minutes'
    ))
$$;

insert into public.companies (id, name) values (1, 'A');
insert into public.staff (id, company_id, name) values (1, 1, 'S');
insert into public.calls (id, company_id, direction, booking_id)
select g, 1, 'inbound', 'bk_' || g from generate_series(1, 4) as g;
select setval(pg_get_serial_sequence('public.calls', 'id'), 4);
insert into public.appointments (company_id, call_id, calcom_v2_booking_id, staff_id, starts_at, ends_at)
values
(1, 1, 'bk_1', 1, '2030-01-01 09:00+00', '2030-01-01 09:30+00'),
(1, 2, 'bk_2', 1, '2030-01-01 10:00+00', '2030-01-01 10:30+00');

select results_eq(
    $$select action from guard.handle_booking_event(
        pg_temp.event('BOOKING_RESCHEDULED', 'bk_2b', 'bk_2', '2030-01-01 09:15+00')
    )$$, array['queued'], 'moved to where the staff member is busy'
);
select results_eq(
    'select calcom_v2_booking_id, starts_at from public.appointments where call_id = 2',
    $$values ('bk_2', timestamptz '2030-01-01 10:00+00')$$, 'the appointment stays as it was'
);
select results_eq(
    'select event, action from guard.webhook_events', $$values ('BOOKING_RESCHEDULED', 'queued')$$, 'the event is kept'
);
select results_eq(
    'select booking_id, state, refused from guard.remote_bookings order by 1',
    $$values ('bk_2', 'superseded', null), ('bk_2b', 'active', '23P01')$$, 'and what it says'
);
select isnt_empty(
    $$select from guard.manual_review_queue
    where call_id = 2 and reason = 'appointment_validation_failed' and status = 'pending'
    and context::text like '%"bk_2b"%' and context::text like '%guard_overlapping_appointment%'$$,
    'a person is told which booking, and what refuses it'
);
select guard.handle_booking_event(pg_temp.event('BOOKING_RESCHEDULED', 'bk_2b', 'bk_2', '2030-01-01 09:15+00', 2));
select is((select count(*) from guard.manual_review_queue), 1::bigint, 'once');
select guard.process_review_queue();
select is(
    (select q.status from guard.manual_review_queue as q), 'pending',
    'that the call has an appointment does not settle it'
);

-- the slot is free again
update public.appointments set status = 'cancelled' where call_id = 1;
select guard.process_review_queue();
select results_eq(
    'select calcom_v2_booking_id, starts_at from public.appointments where call_id = 2',
    $$values ('bk_2b', timestamptz '2030-01-01 09:15+00')$$, 'the job tries again'
);
select is_empty('select from guard.remote_bookings where refused is not null', 'nothing is refused any more');
select is((select q.status from guard.manual_review_queue as q), 'resolved', 'and nobody need decide');

-- also where the request is wrong
select guard.begin_booking('k3', 3, '{"staff_id": 99}');
select guard.mark_remote_booked('k3', 'bk_3');
select results_eq(
    $$select action from guard.handle_booking_event(
        pg_temp.event('BOOKING_CREATED', 'bk_3', null, '2030-01-02 09:00+00')
    )$$, array['queued'], 'a staff member who does not exist'
);
select throws_ok($$select guard.record_booking('k3', '{}')$$, '23503', null, 'the process that booked is told');
select is((select r.refused from guard.remote_bookings as r where r.booking_id = 'bk_3'), '23503', 'it is marked');
-- a trigger of the application that has an SQLSTATE of its own
create function pg_temp.refuse() returns trigger language plpgsql as $$
begin
    raise exception using errcode = tg_argv[0], message = 'closed that day';
end
$$;
create trigger closed before insert on public.appointments for each row
when (new.calcom_v2_booking_id = any('{bk_4,bk_5}')) execute function pg_temp.refuse('BK001');
select results_eq(
    $$select action from guard.handle_booking_event(
        pg_temp.event('BOOKING_CREATED', 'bk_4', null, '2030-01-03 09:00+00')
    )$$, array['queued'], 'whatever the application refuses it with'
);
select guard.handle_booking_event(jsonb_set(
    pg_temp.event('BOOKING_CREATED', 'bk_5', null, '2030-01-03 09:00+00'),
    '{payload,metadata}', '{"retell_call_id": "call_5"}'
));
select results_eq(
    $$select action from guard.handle_call_ended(
        '{"event": "call_ended", "call": {"call_id": "call_5", "metadata": {"company_id": 1}}}'
    )$$, array['created'], 'a call whose booking is refused is kept'
);
select results_eq(
    $$select booking_id, refused from guard.remote_bookings where booking_id = any('{bk_4,bk_5}') order by 1$$,
    $$values ('bk_4', 'BK001'), ('bk_5', 'BK001')$$, 'and so are the bookings'
);

-- what says nothing about the booking is raised, and does not hold up the others
drop trigger closed on public.appointments;
create trigger closed before insert on public.appointments for each row
when (new.calcom_v2_booking_id = 'bk_4') execute function pg_temp.refuse('42501');
select throws_ok(
    $$select guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_4', null, '2030-01-03 09:00+00', 2))$$,
    '42501', null, 'a missing right: the event comes again'
);
update guard.remote_bookings set updated_at = '2026-01-01' where booking_id = 'bk_4';
select lives_ok('select guard.process_review_queue()', 'the job goes on');
select results_eq(
    $$select r.booking_id, r.updated_at = now(), a.id is not null
    from guard.remote_bookings as r
    left join public.appointments as a on r.booking_id = a.calcom_v2_booking_id
    where r.booking_id = any('{bk_4,bk_5}')
    order by 1$$,
    $$values ('bk_4', true, false), ('bk_5', true, true)$$, 'with the next one'
);
select * from finish();
rollback;
