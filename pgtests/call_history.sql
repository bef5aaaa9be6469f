-- What is known of a call is found in every table, its appointments' too, and phone numbers are masked.
begin;
select plan(15);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, retell_call_id, booking_id, from_number, booking_failure_reason)
values
(1, 1, 'inbound', 'retell-1', null, '+4915112345678', 'call back at +4915112345678'),
(2, 1, 'inbound', 'retell-2', null, null, null);

select guard.begin_booking('k', 1, '{"starts_at": "2030-01-01T09:00:00Z", "ends_at": "2030-01-01T09:30:00Z"}');
select guard.mark_remote_booked('k', 'b1');
select guard.record_booking('k', '{}');
select guard.validate_booking('k');
select guard.handle_booking_event(
    '{"triggerEvent": "BOOKING_RESCHEDULED", "createdAt": "2026-01-01T10:00:00Z", "payload": {"uid": "b2",
    "rescheduleUid": "b1", "startTime": "2030-01-02T09:00:00Z", "endTime": "2030-01-02T09:30:00Z"}}'
);
select guard.handle_call_ended(
    '{"event": "call_ended", "call": {"call_id": "retell-1", "from_number": "+4915112345678"}}'
);
select guard.queue_review(1, 'test', '{"note": "x", "phone": "+4915112345678"}');
select guard.queue_review(null, 'booking_without_call', '{"subject": "b2"}');
create temporary table mine as select a.id from public.appointments as a where a.call_id = 1;
select guard.note_suspects('call', array[1]);
select guard.note_suspects('appointment', array(select m.id from mine as m));
select
    guard.open_incidents(jsonb_agg(jsonb_build_object(
        'rule', 'tenant_mismatch', 'severity', 'critical', 'entity_type', 'appointment', 'entity_id', m.id,
        'company_id', 1, 'occurred_at', now(), 'description', 'call +4915112345678', 'details', '{}'::jsonb
    )))
from mine as m;
insert into guard.baseline (rule, entity_type, entity_id) values ('missing_direction', 'call', 1);

create temporary table known as
select e.key as section, e.value from json_each(guard.call_history(1)) as e;

create function pg_temp.of(p_section text, p_column text) returns text[] language sql as $$
    select array_agg(x ->> p_column order by place)
    from known as k
    cross join json_array_elements(k.value) with ordinality as x (x, place)
    where k.section = p_section
$$;

select is_empty(
    $$select k.section from known as k where k.value::text = '[]'$$, 'every section has what the call left in its table'
);
select is(pg_temp.of('appointments', 'booking_id'), '{b2}', 'its appointment, under the booking''s new id');
select set_eq(
    $$select unnest(pg_temp.of('remote_bookings', 'booking_id'))$$, '{b1,b2}'::text[],
    'the booking, and the one that it was before'
);
select is(pg_temp.of('intents', 'key'), '{k}', 'the intent');
select is(pg_temp.of('validations', 'success'), '{true}', 'the validation');
select set_eq(
    $$select unnest(pg_temp.of('webhook_events', 'event'))$$, '{BOOKING_RESCHEDULED,call_ended}'::text[],
    'webhooks of the phone agent and of the calendar'
);
select set_eq(
    $$select unnest(pg_temp.of('pending_checks', 'entity_type'))$$, '{call,appointment}'::text[],
    'what waits to be looked at'
);
select is(pg_temp.of('incidents', 'rule'), '{tenant_mismatch}', 'incidents of its appointment');
select ok('appointment' = any(pg_temp.of('alerts', 'entity_type')), 'alerts of its appointment');
select set_eq(
    $$select unnest(pg_temp.of('reviews', 'reason'))$$, '{test,booking_without_call}'::text[],
    'what is asked about it, and about its booking'
);
select ok('tenant_mismatch' = any(pg_temp.of('messages', 'kind')), 'what was told of it');
select is_empty($$select from known as k where k.value::text like '%5112345%'$$, 'no phone number is in it');
select is_empty(
    $$select e.key from json_each(guard.call_history(2)) as e where e.key <> 'call' and e.value::text <> '[]'$$,
    'another call has none of it'
);
select is(guard.call_history(3)::text, null, 'a call that is not there has no history');

set local role guard_operator;
select lives_ok($$select guard.call_history(1)$$, 'operators may ask');

select * from finish();
rollback;
