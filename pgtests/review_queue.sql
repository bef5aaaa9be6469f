-- What a person must decide: one open item per call and reason, the most urgent first, every action audited.
begin;
select plan(33);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, retell_call_id)
values (1, 1, 'inbound', 'call_1'), (2, 1, 'inbound', 'call_2'), (3, 1, 'inbound', 'call_3');

select is(
    guard.queue_review(1, 'something_else'), guard.queue_review(1, 'something_else', '{"n": 1}'),
    'queueing again gives the same item'
);
select results_eq(
    'select call_id, retell_call_id, reason, context, priority, status from guard.manual_review_queue',
    $$values (1::bigint, 'call_1', 'something_else', '{"n": 1}'::jsonb, 5, 'pending')$$, 'with what is new added to it'
);
select guard.queue_review(2, 'calcom_booking_failed');
select guard.queue_review(3, 'appointment_validation_failed');
select guard.queue_review(3, 'customer_creation_failed');
select guard.queue_review(3, 'service_not_found');
select results_eq(
    'select reason, priority from guard.manual_review_queue order by priority',
    $$values ('appointment_validation_failed', 1), ('calcom_booking_failed', 2), ('customer_creation_failed', 3),
    ('service_not_found', 4), ('something_else', 5)$$, 'priorities by reason'
);

select is(
    (select t.reason from guard.take_review('ann') as t), 'appointment_validation_failed',
    'the most urgent first'
);
select is((select t.reason from guard.take_review('ben') as t), 'calcom_booking_failed', 'nobody gets one twice');
select is(
    (select r.status from guard.release_review(
        (select q.id from guard.manual_review_queue as q where q.assignee = 'ben')
    ) as r),
    'pending', 'an item can be given back'
);
select is(
    (select r.status from guard.resolve_review(
        (select q.id from guard.manual_review_queue as q where q.assignee = 'ann'), 'called the customer'
    ) as r),
    'resolved', 'and resolved'
);
select isnt(
    guard.queue_review(3, 'appointment_validation_failed'),
    (select q.id from guard.manual_review_queue as q where q.status = 'resolved'), 'after that a new item can be opened'
);
select results_eq(
    $$select action, count(*) from guard.audit_log group by 1 order by 1$$,
    $$values ('queue_review', 7::bigint), ('release_review', 1), ('resolve_review', 1), ('take_review', 2)$$,
    'every action is audited'
);

select is(
    guard.queue_review(null, 'booking_without_call', '{"subject": "bk_1"}'),
    guard.queue_review(null, 'booking_without_call', '{"subject": "bk_1"}'), 'without a call: one item per subject'
);
select isnt(
    guard.queue_review(null, 'booking_without_call', '{"subject": "bk_1"}'),
    guard.queue_review(null, 'booking_without_call', '{"subject": "bk_2"}'), 'another subject is another item'
);

-- nothing that a person is asked to look for is lost by what comes after it
select guard.queue_review(2, 'two bookings', '{"booking_id": "bk_1", "question": "where?"}');
select guard.queue_review(2, 'two bookings', '{"n": 1}');
select guard.queue_review(2, 'two bookings', '{"booking_id": "bk_2"}');
select guard.queue_review(2, 'two bookings', '{"booking_id": "bk_1"}');
select guard.queue_review(2, 'two bookings', '{"booking_id": "bk_2"}');
select results_eq(
    $$select context from guard.manual_review_queue where reason = 'two bookings'$$,
    $$values (
        '{"booking_id": "bk_2", "earlier": [{"booking_id": "bk_1", "question": "where?", "n": 1}]}'::jsonb
    )$$, 'what contradicts the context is kept beside it, each once'
);
select guard.queue_review(2, 'two bookings', '{"booking_id": "bk_3"}');
select results_eq(
    $$select distinct jsonb_path_query(context, 'lax $.**.booking_id') #>> '{}'
    from guard.manual_review_queue where reason = 'two bookings' order by 1$$,
    $$values ('bk_1'), ('bk_2'), ('bk_3')$$, 'however many'
);
select bag_eq(
    $$select guard.add_context(a.context, b.context) from (values
        ('{"intent_id": 1, "key": "k"}'::jsonb), ('{"question": "where?"}'), ('{"n": 1}')) as a (context)
    cross join (values ('{"intent_id": 1, "question": "booked?"}'::jsonb), ('{"question": "where?"}')) as b (context)$$,
    $$values
    ('{"intent_id": 1, "key": "k", "question": "booked?"}'::jsonb),
    ('{"question": "where?", "earlier": [{"intent_id": 1, "key": "k"}]}'),
    ('{"intent_id": 1, "question": "booked?", "earlier": [{"question": "where?"}]}'),
    ('{"question": "where?"}'),
    ('{"intent_id": 1, "question": "booked?", "earlier": [{"n": 1}]}'),
    ('{"n": 1, "question": "where?"}')$$, 'what an intent asks and what others ask are kept apart'
);
select is(
    guard.add_context('{"n": 1}', '{"intent_id": 1}'), '{"n": 1, "intent_id": 1}', 'what asks nothing is one'
);
create temporary table big as
select string_agg(md5(g::text), '') as text from generate_series(1, 1875) as g; -- 60 kB
select isnt(
    guard.queue_review(2, 'big', jsonb_build_object('a', b.text)),
    guard.queue_review(2, 'big', jsonb_build_object('b', b.text)), 'an item that is full is continued in another'
) from big as b;
select is(
    guard.queue_review(2, 'big', jsonb_build_object('a', b.text)),
    (select min(q.id) from guard.manual_review_queue as q where q.reason = 'big'), 'what it has is not told again'
) from big as b;
select guard.queue_review(2, 'big', '{"c": 1}');
select ok(
    max(pg_column_size(q.context || '{}')) < 65537 and count(*) = 2, 'none is bigger than a context may be'
) from guard.manual_review_queue as q where q.reason = 'big';
select isnt(
    guard.queue_review(null, 'big', jsonb_build_object('subject', 's', 'a', b.text)),
    guard.queue_review(null, 'big', jsonb_build_object('subject', 's', 'b', b.text)), 'also where no call is known'
) from big as b;
select guard.resolve_review(q.id, 'ok') from guard.manual_review_queue as q where q.reason = 'big';
select guard.queue_review(2, 'big', '{"c": 1}');
select results_eq(
    $$select context from guard.manual_review_queue where reason = 'big' and status = 'pending'$$,
    $$values ('{"c": 1}'::jsonb)$$, 'a new item begins anew'
);

select throws_ok($$select guard.queue_review(99, 'x')$$, 'ZG301', null, 'an unknown call');
select throws_ok($$select guard.queue_review(-1, 'x')$$, 'ZG301', null, 'a negative id');
select throws_ok('select guard.queue_review(1, null)', 'ZG302', null, 'no reason');
select throws_ok($$select guard.queue_review(1, 'x', '[]')$$, 'ZG303', null, 'a context that is no object');
select throws_ok(
    $$select guard.queue_review(1, 'x', jsonb_build_object('a', (
        select string_agg(md5(g::text), '') from generate_series(1, 32768) as g
    )))$$,
    'ZG303', null, 'a context of a megabyte'
);
select lives_ok(
    $$select guard.queue_review(
        1, $q$'); drop table calls; --$q$, jsonb_build_object('a', $q$'); drop table calls; --$q$)
    )$$,
    'SQL in a text is a text'
);
select throws_ok('select guard.take_review(null)', 'ZG306', null, 'nobody takes nothing');
select throws_ok($$select guard.resolve_review(-1, 'x')$$, 'ZG304', null, 'an unknown item');
select throws_ok(
    $$select guard.resolve_review((select min(id) from guard.manual_review_queue where status = 'resolved'), 'x')$$,
    'ZG305', null, 'an item that is resolved already'
);
select throws_ok(
    $$select guard.release_review((select min(id) from guard.manual_review_queue where status = 'pending'))$$,
    'ZG305', null, 'an item that nobody has taken'
);

-- the hourly retry
insert into public.appointments (company_id, call_id) values (1, 3);
select results_eq(
    'select examined, resolved from guard.process_review_queue()', 'values (2, 1)',
    'a call that has its appointment now needs no decision'
);
select guard.process_review_queue();
select guard.process_review_queue();
select results_eq(
    'select examined, resolved from guard.process_review_queue()', 'values (0, 0)', 'an item is retried three times'
);
select guard.queue_review(2, 'calcom_booking_failed', '{"n": 2}');
select results_eq('select examined from guard.process_review_queue()', array[1], 'and anew when it is added to');

select * from finish();
rollback;
