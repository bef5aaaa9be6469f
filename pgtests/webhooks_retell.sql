-- Events of the phone agent: handled once, in any order.
begin;
select plan(14);

insert into public.companies (id, name) values (1, 'A');
select results_eq(
    $$select call_id is not null, action from guard.handle_call_ended('{"event": "call_ended", "call": {
        "call_id": "c1", "direction": "outbound", "from_number": "+4915112345678", "to_number": "+493012345",
        "start_timestamp": 1767225600000, "metadata": {"company_id": 1}, "new_field": [1]}}')$$,
    $$values (true, 'created')$$, 'a call that is not known yet'
);
select results_eq(
    'select company_id, direction, status, from_number, created_at from public.calls',
    $$values (1::bigint, 'outbound', 'ended', '+4915112345678', timestamptz '2026-01-01 00:00+00')$$, 'is written'
);
select results_eq(
    $$select action from guard.handle_call_ended('{"event": "call_ended", "call": {
        "call_id": "c1", "direction": "outbound", "from_number": "+4915112345678", "to_number": "+493012345",
        "start_timestamp": 1767225600000, "metadata": {"company_id": 1}, "new_field": [1]}}')$$,
    array['duplicate'], 'the same event again'
);
select results_eq(
    $$select action from guard.handle_call_ended('{"event": "call_started", "call": {"call_id": "c1"}}')$$,
    array['updated'], 'the start comes after the end'
);
select is((select c.status from public.calls as c), 'ended', 'and does not undo it');
select results_eq(
    $$select action from guard.handle_call_ended('{"event": "call_analyzed", "call": {"call_id": "c1",
        "call_analysis": {"call_successful": true}}}')$$, array['updated'], 'the analysis'
);
select is((select c.call_successful from public.calls as c), true, 'is kept');
select is(
    (select count(*) from guard.webhook_events as w where w.payload::text ~ '\+49'), 0::bigint,
    'events are kept without phone numbers'
);
select isnt_empty(
    $$select from guard.webhook_events where payload #> '{call,new_field}' = '[1]'$$,
    'and with unknown fields'
);

create temporary table kept as
select guard.without_phone_numbers('{
    "uid": "4917012345678", "attendees": [{"name": "X", "phoneNumber": "+4917012345678"}, "+49 170 12345678"],
    "location": "+4917012345678", "at": "2026-01-01T10:00:00.000Z", "start_timestamp": 1767225600000,
    "responses": {"location": {"value": {"value": "phone", "optionValue": "tel:+4917012345678"}}, "guests": []},
    "call": {"transcript": "call 0170 12345678", "transcript_object": [{"words": []}], "note": "call 0170 12345678"}
}') as payload;
select is(
    (select k.payload from kept as k),
    '{"uid": "4917012345678", "attendees": [{"name": "X"}, "***78"], "location": "***78",
    "at": "2026-01-01T10:00:00.000Z", "start_timestamp": 1767225600000,
    "responses": {"location": {"value": {"value": "phone", "optionValue": "tel:***78"}}, "guests": []},
    "call": {"note": "call ***78"}}',
    'at any depth and under any name; ids and times stay'
);

select results_eq(
    $$select call_id, action from guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c2"}}')$$,
    $$values (null::bigint, 'queued')$$, 'a call of nobody''s goes to a person'
);
select results_eq(
    $$select distinct h.action
    from unnest('{1x," 1",99999999999999999999999}'::text[]) as m (named)
    cross join lateral guard.handle_call_ended(jsonb_build_object('event', 'call_ended', 'call', jsonb_build_object(
        'call_id', 'd', 'metadata', jsonb_build_object('company_id', m.named)
    ))) as h$$, array['queued'], 'what is no id of a company names none'
);
update public.calls set appointment_made = true, session_outcome = 'appointment_booked';
select guard.handle_call_ended('{"event": "call_ended", "call": {"call_id": "c1", "x": 1}}');
select isnt_empty(
    $$select from guard.manual_review_queue where reason = 'appointment_validation_failed'$$,
    'a call that ended with a claim and no appointment goes to a person'
);
select throws_ok($$select guard.handle_call_ended('[]')$$, 'ZG320', null, 'what is no event');

select * from finish();
rollback;
