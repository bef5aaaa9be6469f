-- Whatever the booking path is given: a clear error or a clean result, and nothing in it is ever executed.
begin;
select plan(48);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, retell_call_id)
select g, 1, 'inbound', 'call_' || g from generate_series(1, 9) as g;
select setval(pg_get_serial_sequence('public.calls', 'id'), 100);
create temporary table evil as select $$'); drop table guard.booking_intents; --$$ as text;

-- unknown and negative ids
select results_eq(
    'select success, reason from guard.validate_appointment(-1)',
    $$values (false, 'appointment_not_found')$$, 'a negative call'
);
select results_eq(
    'select success, reason from guard.validate_appointment(99, -1)',
    $$values (false, 'appointment_not_found')$$, 'an unknown call and a negative appointment'
);
select throws_ok($$select guard.rollback_booking(-1, 'x')$$, 'ZG301', null, 'nothing to roll back');
select throws_ok($$select guard.begin_booking('k', -1, '{}')$$, 'ZG301', null, 'no booking for a negative call');
select throws_ok('select guard.release_review(-1)', 'ZG304', null, 'no such item');
select is_empty('select from guard.recover_intents(interval ''-1 hour'')', 'a negative age finds nothing here');

-- null and too much
select throws_ok($$select guard.begin_booking(null, 1, '{}')$$, 'ZG313', null, 'no key');
select throws_ok($$select guard.begin_booking('k', null, '{}')$$, 'ZG301', null, 'no call');
select throws_ok($$select guard.begin_booking('k', 1, 'null')$$, 'ZG313', null, 'a request that is JSON null');
select throws_ok(
    $$select guard.begin_booking('k', 1, jsonb_build_object('x', repeat('x', 1000000)))$$, 'ZG313', null,
    'a request of a megabyte'
);
select throws_ok($$select guard.fail_booking(null, 'x')$$, 'ZG312', null, 'no intent without a key');
select throws_ok($$select guard.rollback_booking(1, repeat('x', 10000))$$, 'ZG308', null, 'an endless reason');
select throws_ok($$select guard.queue_review(1, repeat('x', 10000))$$, 'ZG302', null, 'here too');
select throws_ok($$select guard.take_review(repeat('x', 10000))$$, 'ZG306', null, 'an endless name');
select is(
    (select v.reason from guard.validate_appointment(1, null, repeat('x', 1000000)) as v), 'appointment_not_found',
    'a booking id of a megabyte is not found'
);
select is_empty('select from guard.booking_intents', 'no intent was made');
select is_empty('select from guard.manual_review_queue', 'and no item');

-- SQL in every text field
select is(guard.rollback_booking(1, e.text), true, 'SQL as the reason of a rollback') from evil as e;
select is(
    (select c.booking_failure_reason from public.calls as c where c.id = 1), e.text, 'is a reason'
) from evil as e;
select isnt(guard.queue_review(2, e.text, jsonb_build_object(e.text, e.text)), null, 'as that of a review')
from evil as e;
select results_eq(
    'select q.reason, q.context ->> e.text from guard.manual_review_queue as q, evil as e where q.call_id = 2',
    'select e.text, e.text from evil as e', 'and its context'
);
select is((select t.assignee from guard.take_review(e.text) as t), e.text, 'as who takes it') from evil as e;
select is(
    (
        select r.resolution
        from guard.manual_review_queue as q
        cross join lateral guard.resolve_review(q.id, e.text) as r
        where q.status = 'in_progress'
    ), e.text, 'as what was done'
) from evil as e;
select is((select b.state from guard.begin_booking(e.text, 3, '{}') as b), 'started', 'as a key') from evil as e;
select is(
    (select m.booking_id from guard.mark_remote_booked(e.text, e.text) as m), e.text, 'as a booking id'
) from evil as e;
select throws_ok(
    $$select guard.record_booking(e.text, jsonb_build_object('staff_id', e.text)) from evil as e$$, '22P02', null,
    'as a number: it is none'
);
select is(
    (select r.state from guard.record_booking(e.text, jsonb_build_object('status', e.text)) as r), 'recorded',
    'as a status'
) from evil as e;
select results_eq(
    'select a.calcom_v2_booking_id::text, a.status::text from public.appointments as a',
    'select e.text, e.text from evil as e', 'and it is what was written'
);
select is(
    (
        select h.action
        from guard.handle_booking_event(jsonb_build_object(
            'triggerEvent', 'BOOKING_CREATED', 'createdAt', '2026-01-01T10:00:00Z',
            'payload',
            jsonb_build_object('uid', e.text || '2', 'metadata', jsonb_build_object('retell_call_id', e.text))
        )) as h
    ), 'queued', 'in an event of the calendar'
) from evil as e;
select is(
    (
        select h.action
        from guard.handle_call_ended(jsonb_build_object(
            'event', e.text, 'call', jsonb_build_object('call_id', e.text, 'direction', e.text)
        )) as h
    ), 'ignored', 'in an event of the phone agent'
) from evil as e;

-- malformed
select throws_ok($$select guard.handle_booking_event('{"triggerEvent": ')$$, '22P02', null, 'half an event');
select throws_ok($$select guard.handle_booking_event(null)$$, 'ZG320', null, 'no event');
select throws_ok(
    $$select guard.handle_booking_event('{"triggerEvent": "BOOKING_CREATED", "payload": "x"}')$$, 'ZG320', null,
    'a payload that is a text'
);
select throws_ok(
    $$select guard.handle_booking_event('{"payload": {"uid": "bk"}}')$$, 'ZG320', null,
    'a booking to which nothing happened'
);
select throws_ok($$select guard.handle_call_ended('{"call": {"call_id": "c"}}')$$, 'ZG320', null, 'a call likewise');
select throws_ok(
    $$select guard.handle_call_ended('{"event": "call_ended", "call": "x"}')$$, 'ZG320', null, 'a call that is one'
);
select throws_ok(
    $$select guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c",
        "metadata": {"company_id": 1}, "start_timestamp": "soon"}}')$$, 'ZG320', null, 'a time that is none'
);
select throws_ok(
    $$select guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c",
        "metadata": {"company_id": 1}, "start_timestamp": 1e300}}')$$, 'ZG320', null, 'a time beyond time'
);

-- rules and partitions
select throws_ok($$select guard.probe_rule('nope')$$, 'ZG010', $$there is no rule 'nope'$$, 'no rule to probe');
select throws_ok('select guard.probe_rule(null)', 'ZG010', 'there is no rule without a name', 'nor one without a name');
select throws_ok($$select guard.set_rule(null, 'off')$$, 'ZG010', 'there is no rule without a name', 'nor to set');
select throws_ok('select guard.ensure_alert_partitions(null, 2)', 'ZG408', null, 'partitions of no month');
select throws_ok($$select guard.ensure_alert_partitions('infinity', 2)$$, 'ZG408', null, 'after the last one');
select throws_ok('select guard.ensure_alert_partitions(now(), null)', 'ZG408', null, 'and none of them');

-- clocks that go wrong
select guard.handle_booking_event('{"triggerEvent": "BOOKING_CREATED", "createdAt": "2999-01-01T00:00:00Z",
    "payload": {"uid": "bk_4", "metadata": {"retell_call_id": "call_4"}}}');
select is(
    (
        select h.action
        from guard.handle_booking_event('{"triggerEvent": "BOOKING_CANCELLED", "createdAt": "2026-01-01T00:00:00Z",
            "payload": {"uid": "bk_4"}}') as h
    ), 'cancelled', 'a booking from the future can be cancelled'
);
select is(
    (select c.appointment_made and c.session_outcome = 'appointment_booked' from public.calls as c where c.id = 4),
    true, 'its call follows the row that is there'
);
insert into public.appointments (company_id, call_id, created_at) values (1, 5, now() + interval '1 hour');
select ok((select v.success from guard.validate_appointment(5) as v), 'an appointment from the future is not too old');
select isnt(
    (
        select h.action
        from guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c9", "direction": "inbound",
            "metadata": {"company_id": 1}, "start_timestamp": 32503680000000}}') as h
    ), null, 'a call from the future is written'
);

select * from finish();
rollback;
