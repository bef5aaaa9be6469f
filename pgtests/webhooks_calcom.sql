-- Events of the calendar: handled once, in any order; a cancelled booking never leaves a phantom.
begin;
select plan(25);

create function pg_temp.event(p_trigger text, p_uid text, p_at text, p_more jsonb = '{}')
returns jsonb language sql as $$
    select jsonb_build_object('triggerEvent', p_trigger, 'createdAt', p_at, 'payload', jsonb_build_object(
        'uid', p_uid, 'startTime', '2030-01-01T09:00:00Z', 'endTime', '2030-01-01T09:30:00Z'
    ) || p_more)
$$;

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, retell_call_id, booking_id)
select g, 1, 'inbound', 'call_' || g, 'bk_' || g from generate_series(1, 9) as g;

select results_eq(
    $$select appointment_id is not null, action
    from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_1', '2026-01-01T10:00:00Z'))$$,
    $$values (true, 'created')$$, 'a booking whose call knows it'
);
select results_eq(
    $$select call_id, starts_at from public.appointments$$,
    $$values (1::bigint, timestamptz '2030-01-01 09:00+00')$$, 'becomes an appointment'
);
select is((select c.appointment_made from public.calls as c where c.id = 1), true, 'and its call follows');
select results_eq(
    $$select action from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_1', '2026-01-01T10:00:00Z'))$$,
    array['duplicate'], 'the same event again'
);
select results_eq(
    $$select action from guard.handle_booking_event(pg_temp.event('BOOKING_RESCHEDULED', 'bk_1b',
    '2026-01-01T11:00:00Z',
        '{"rescheduleUid": "bk_1", "startTime": "2030-01-02T09:00:00Z", "endTime": "2030-01-02T09:30:00Z"}'))$$,
    array['rescheduled'], 'it is moved'
);
select results_eq(
    $$select calcom_v2_booking_id, starts_at from public.appointments$$,
    $$values ('bk_1b', timestamptz '2030-01-02 09:00+00')$$, 'the same appointment has the new uid and time'
);
select results_eq(
    $$select action
    from guard.handle_booking_event(pg_temp.event('BOOKING_CANCELLED', 'bk_1', '2026-01-01T12:00:00Z'))$$,
    array['stale'], 'the old uid cannot cancel it'
);
select is((select a.status from public.appointments as a), 'booked', 'it is still booked');
select results_eq(
    $$select action
    from guard.handle_booking_event(pg_temp.event('BOOKING_CANCELLED', 'bk_1b', '2026-01-01T12:00:00Z'))$$,
    array['cancelled'], 'the new one can'
);
select is((select a.status from public.appointments as a), 'cancelled', 'and does');

-- in the wrong order
select guard.handle_booking_event(pg_temp.event('BOOKING_CANCELLED', 'bk_2', '2026-01-01T12:00:00Z'));
select results_eq(
    $$select action from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_2', '2026-01-01T10:00:00Z'))$$,
    array['stale'], 'cancelled before it was heard of'
);
select results_eq(
    'select status from public.appointments where call_id = 2', array['cancelled'], 'it stays cancelled'
);
select guard.handle_booking_event(
    pg_temp.event('BOOKING_RESCHEDULED', 'bk_3b', '2026-01-01T11:00:00Z', '{"rescheduleUid": "bk_3"}')
);
select results_eq(
    $$select action from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_3', '2026-01-01T10:00:00Z'))$$,
    array['stale'], 'moved before it was heard of: the first event is old news'
);
select results_eq(
    'select calcom_v2_booking_id from public.appointments where call_id = 3', array['bk_3b'],
    'one appointment, with the new uid'
);

-- a claim without an appointment
update public.calls set appointment_made = true, session_outcome = 'appointment_booked' where id = 4;
select guard.handle_booking_event(pg_temp.event('BOOKING_CANCELLED', 'bk_4', '2026-01-01T12:00:00Z'));
select results_eq(
    'select calcom_v2_booking_id, status from public.appointments where call_id = 4',
    $$values ('bk_4', 'cancelled')$$,
    'a cancelled booking leaves no phantom, but a cancelled appointment'
);

select results_eq(
    $$select action from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_x', '2026-01-01T10:00:00Z',
        '{"metadata": {"retell_call_id": "call_5"}}'))$$, array['created'], 'the call is found by the phone agent''s id'
);
select results_eq(
    $$select appointment_id, action
    from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_y', '2026-01-01T10:00:00Z'))$$,
    $$values (null::bigint, 'queued')$$, 'a booking of no call goes to a person'
);
select results_eq(
    $$select distinct h.action
    from unnest('{x5," 5",-5,5.0,99999999999999999999999}'::text[]) as m (named)
    cross join lateral guard.handle_booking_event(pg_temp.event(
        'BOOKING_CREATED', 'bk_' || m.named, '2026-01-01T10:00:00Z',
        jsonb_build_object('metadata', jsonb_build_object('call_id', m.named))
    )) as h$$, array['queued'], 'and not by what is no id'
);
select is(
    (select h.action from guard.handle_booking_event(pg_temp.event(
        'BOOKING_CREATED', 'bk_w', '2026-01-01T10:00:00Z', '{"metadata": {"call_id": 6}}'
    )) as h), 'created', 'but by its own id'
);
select throws_ok($$select guard.handle_booking_event('{}')$$, 'ZG320', null, 'what is no event');
select throws_ok(
    $$select guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_1', 'yesterday-ish'))$$, 'ZG320', null,
    'a time that cannot be read'
);

-- clocks that go wrong
select guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_7', '3000-01-01T00:00:00Z'));
select guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_8', 'infinity'));
select results_eq(
    $$select action from generate_series(7, 8) as n
    cross join lateral guard.handle_booking_event(pg_temp.event(
        'BOOKING_RESCHEDULED', 'bk_' || n, '2026-01-01T11:00:00Z',
        '{"startTime": "2030-01-03T09:00:00Z", "endTime": "2030-01-03T09:30:00Z"}'
    ))$$, array['rescheduled', 'rescheduled'], 'a booking from the year 3000 can still be moved'
);
select results_eq(
    'select distinct starts_at from public.appointments where call_id in (7, 8)',
    $$values (timestamptz '2030-01-03 09:00+00')$$, 'and is'
);

select guard.set_rule('inconsistent_link_status', 'observe');
insert into public.calls (id, company_id, direction, booking_id) values (20, 1, 'inbound', 'bk_20');
select results_eq(
    $$select action
    from guard.handle_booking_event(pg_temp.event('BOOKING_CREATED', 'bk_20', '2026-01-01T10:00:00Z'))$$,
    array['created'], 'where calls do not follow, a booking is written'
);
select is_empty(
    'select from guard.manual_review_queue where call_id = 20', 'and nobody is asked about flags that may yet come'
);

select * from finish();
rollback;
