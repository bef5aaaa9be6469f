-- A booking that is heard of before its call waits for it.
begin;
select plan(13);

create function pg_temp.event(p_trigger text, p_uid text, p_metadata jsonb)
returns jsonb language sql as $$
    select jsonb_build_object('triggerEvent', p_trigger, 'payload', jsonb_build_object(
        'uid', p_uid, 'startTime', '2030-01-01T09:00:00Z', 'endTime', '2030-01-01T09:30:00Z', 'metadata', p_metadata
    ))
$$;

insert into public.companies (id, name) values (1, 'A');
select results_eq(
    $$select action from unnest(array['c1', 'c2', 'c3', 'c4']) as c (id)
    cross join lateral guard.handle_booking_event(
        pg_temp.event('BOOKING_CREATED', 'bk_' || c.id, jsonb_build_object('retell_call_id', c.id))
    )$$, array['queued', 'queued', 'queued', 'queued'], 'calls that nobody knows'
);
select results_eq(
    $$select subject, status from guard.manual_review_queue order by 1$$,
    $$values ('bk_c1', 'pending'), ('bk_c2', 'pending'), ('bk_c3', 'pending'), ('bk_c4', 'pending')$$,
    'a person is asked about each'
);

-- the phone agent tells of the call
select guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c1", "metadata": {"company_id": 1}}}');
select results_eq(
    $$select c.retell_call_id, a.starts_at, c.appointment_made
    from public.appointments as a inner join public.calls as c on a.call_id = c.id$$,
    $$values ('c1', timestamptz '2030-01-01 09:00+00', true)$$, 'with its call the booking becomes an appointment'
);
select is(
    (select q.status from guard.manual_review_queue as q where q.subject = 'bk_c1'), 'resolved', 'and nobody is asked'
);
select results_eq(
    $$select appointment_id is not null, action from guard.handle_booking_event(
        pg_temp.event('BOOKING_CREATED', 'bk_c1', '{"retell_call_id": "c1"}')
    )$$, $$values (true, 'duplicate')$$, 'the event again'
);

-- the application writes the call
insert into public.calls (company_id, retell_call_id, direction) values (1, 'c2', 'inbound');
insert into public.calls (company_id, booking_id, direction) values (1, 'bk_c3', 'inbound');
select lives_ok('select guard.process_review_queue()', 'the hourly job');
select results_eq(
    $$select a.calcom_v2_booking_id from public.appointments as a inner join public.calls as c on a.call_id = c.id
    where c.retell_call_id = 'c2' or c.booking_id = 'bk_c3' order by 1$$, array['bk_c2', 'bk_c3'],
    'finds it, by either of its ids'
);
select results_eq(
    $$select subject from guard.manual_review_queue where status <> 'resolved'$$, array['bk_c4'],
    'and goes on waiting for the others'
);
select guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c2"}}');
select is((select count(*) from public.appointments), 3::bigint, 'an event of a call that is known makes no other');

-- moved and cancelled while it waits
select guard.handle_booking_event(
    pg_temp.event('BOOKING_RESCHEDULED', 'bk_c4b', null) #- '{payload,metadata}'
    || '{"payload": {"uid": "bk_c4b", "rescheduleUid": "bk_c4"}}'
);
select results_eq(
    $$select subject from guard.manual_review_queue where status <> 'resolved'$$, array['bk_c4b'],
    'a person is asked about the booking that stands'
);
select is(
    (select h.action from guard.handle_booking_event(pg_temp.event('BOOKING_CANCELLED', 'bk_c4b', null)) as h),
    'cancelled', 'it is cancelled'
);
select is_empty(
    $$select from guard.manual_review_queue where status <> 'resolved'$$, 'and nobody is asked any more'
);
select guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c4", "metadata": {"company_id": 1}}}');
select results_eq(
    $$select a.calcom_v2_booking_id, a.status
    from public.appointments as a inner join public.calls as c on a.call_id = c.id where c.retell_call_id = 'c4'$$,
    $$values ('bk_c4b', 'cancelled')$$, 'its call comes at last'
);

select * from finish();
rollback;
