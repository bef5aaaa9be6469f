-- The outbox becomes messages: critical events at once and grouped by kind, warnings as a digest, reports as they are.
begin;
select plan(31);

create function pg_temp.at(p_minutes numeric) returns timestamptz language sql
as $$select now() + p_minutes * interval '1 minute'$$;
create function pg_temp.bundle(p_minutes numeric) returns integer language sql
as $$select guard.bundle_notifications('{json:0a1b2c3d,mailto:11111111}', pg_temp.at(p_minutes))$$;
create temporary view told as
select m.id, m.kind, m.severity, m.title, m.notifications from guard.messages as m order by m.id;

select is(pg_temp.bundle(0), 0, 'an empty outbox makes no message');

-- a thousand of one kind
select
    guard.notify(
        'critical', 'missing_appointment', 'call', g, g % 7, format('call %s claims a booking, ask +4915112345678', g)
    )
from generate_series(1, 1000) as g;
select is(pg_temp.bundle(0), 1, 'a thousand make one message');
select results_eq(
    'select kind, severity, title, notifications from told',
    $$values ('missing_appointment', 'critical', 'missing_appointment: 1000 new', 1000::bigint)$$, 'with a count'
);
select is(
    (select count(*) from guard.messages as m cross join regexp_matches(m.body, '^- call \d+ claims', 'gn')), 5::bigint,
    'five samples'
);
select ok(
    (
        select
            m.body like '%and 995 more%' and m.body like '%companies 0, 1, 2, 3, 4 and 2 more%'
            and m.body like '%To do: ' || r.runbook
        from guard.messages as m
        inner join guard.rules as r on m.kind = r.rule
    ),
    'the rest, the companies, and what to do'
);
select is_empty(
    $$select message from guard.notifications where message ~ '\d{9}'
    union all select body from guard.messages where body ~ '\d{9}'$$,
    'and no phone number'
);
select results_eq(
    'select channel, status, attempts from guard.deliveries order by channel',
    $$values ('json:0a1b2c3d', 'pending', 0), ('mailto:11111111', 'pending', 0)$$, 'it goes to each channel'
);
select is(pg_temp.bundle(0), 0, 'nothing is told twice');

-- throttled by kind
select guard.notify('critical', 'missing_appointment', 'call', 2000, 1, 'another one');
select guard.notify('critical', 'missing_appointment', 'call', 2000, 1, 'the same once more');
select guard.notify('critical', 'booking_rolled_back', 'call', 2000, 1, 'another kind');
select is(pg_temp.bundle(4.9), 1, 'within the throttle');
select results_eq(
    'select kind from told order by id desc limit 1', $$values ('booking_rolled_back')$$, 'only another kind is told'
);
select is(pg_temp.bundle(5), 1, 'after it, what has gathered');
select results_eq(
    $$select title from told order by id desc limit 1$$, $$values ('missing_appointment: 1 new')$$,
    'one call that came twice counts once'
);
select is_empty('select from guard.notifications where message_id is null', 'nothing is dropped');

-- throttled by rule and entity
update guard.rules set alert_throttle = '1 hour' where rule = 'missing_appointment';
select guard.notify('critical', 'missing_appointment', 'call', 2000, 1, 'back again');
select guard.notify('critical', 'missing_appointment', 'call', 2001, 1, 'one that is new');
select is(pg_temp.bundle(30), 1, 'within the throttle of the rule');
select results_eq(
    'select entity_id from guard.notifications where message_id is null', 'values (2000::bigint)',
    'a call that was told waits, another one does not'
);
select is(pg_temp.bundle(65), 1, 'until the throttle has passed');

-- the digest
select guard.notify('warning', 'missing_direction', 'call', g, 1, 'no direction') from generate_series(1, 12) as g;
select guard.notify('info', 'recent_creation_failure', 'call', 1, 1, 'it failed');
select is(pg_temp.bundle(239), 0, 'warnings are gathered');
select is(pg_temp.bundle(240), 1, 'for four hours');
select results_eq(
    'select kind, severity, title from told order by id desc limit 1',
    $$values ('digest', 'warning', 'Digest: 13 new of 2 kinds')$$, 'and are one message'
);
select matches(
    (select m.body from guard.messages as m where m.kind = 'digest'),
    'missing_direction: 12 new.*call 1: no direction.*and 7 more.*recent_creation_failure: 1 new',
    'the most frequent first'
);

-- the report
select guard.notify('info', 'daily_report', null, null, null, e'DATA CONSISTENCY REPORT - 2025-10-20\n\n  10000 calls');
select is(pg_temp.bundle(241), 1, 'a report is no news for the digest');
select results_eq(
    'select m.title, m.body from guard.messages as m order by m.id desc limit 1',
    $$values ('Daily report', e'DATA CONSISTENCY REPORT - 2025-10-20\n\n  10000 calls')$$, 'and goes out as it is'
);

-- no entity: the text tells events apart
select guard.notify('critical', 'job_failed', 'job', null, null, 'job ' || g % 2) from generate_series(1, 4) as g;
select pg_temp.bundle(242);
select is((select t.notifications from told as t where t.kind = 'job_failed'), 2::bigint, 'two jobs that failed');

-- a clock that is set back by a day: every message is in the future now
select guard.notify('critical', 'job_failed', 'job', null, null, 'job 3');
select is(pg_temp.bundle(-1440), 0, 'the throttle holds');
select is(pg_temp.bundle(-1436), 0, 'as long as it would have');
select is(pg_temp.bundle(-1435), 1, 'and no longer');
update guard.notifications set created_at = pg_temp.at(600), message_id = null where kind = 'missing_direction';
select is(pg_temp.bundle(0), 1, 'a digest does not wait for the clock to catch up');

-- bad input
select throws_ok($$select guard.bundle_notifications('{}')$$, 'ZG601', null, 'no channel: what is due stays due');
select throws_ok('select guard.bundle_notifications(null)', 'ZG601', null, 'nor null');
select throws_ok(
    $$select guard.bundle_notifications('{json://user:secret@example.com}')$$, 'ZG601', null, 'an address is no label'
);
select throws_ok($$select guard.bundle_notifications('{null}')$$, 'ZG601', null, 'null is none either');

select * from finish();
rollback;
