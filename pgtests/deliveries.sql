-- A delivery is claimed, sent and settled; it is tried again, given up, and taken over from a sender that died.
begin;
select plan(26);

create function pg_temp.at(p_minutes numeric) returns timestamptz language sql
as $$select now() + p_minutes * interval '1 minute'$$;
create function pg_temp.claim(p_minutes numeric) returns setof text language sql
as $$
    select format('%s of %s', c.attempt, c.title)
    from guard.claim_delivery('json:0a1b2c3d', pg_temp.at(p_minutes)) as c
$$;
create function pg_temp.the_delivery() returns bigint language sql
as $$select max(d.id) from guard.deliveries as d$$;

select guard.notify('critical', 'job_failed', null, null, null, 'it failed');
select guard.bundle_notifications('{json:0a1b2c3d}');
select is_empty($$select * from guard.claim_delivery('slack:0a1b2c3d')$$, 'another channel has nothing to send');
select set_eq('select pg_temp.claim(0)', $$values ('1 of job_failed: 1 new')$$, 'a sender claims it');
select is_empty('select pg_temp.claim(0)', 'and another sender does not get it');
select is_empty('select pg_temp.claim(1.1)', 'not while it may still be sent');
select set_eq('select pg_temp.claim(1.2)', $$values ('2 of job_failed: 1 new')$$, 'but when the sender must have died');

select is(
    guard.settle_delivery(pg_temp.the_delivery(), 1, 'late', pg_temp.at(1.3)), 'pending',
    'the first one''s failure comes late'
);
select is((select d.last_error from guard.deliveries as d), null, 'and does not count');
select is(
    guard.settle_delivery(pg_temp.the_delivery(), 2, 'refused +4915112345678', pg_temp.at(1.3)), 'pending',
    'the second one''s does'
);
select results_eq(
    'select last_error, next_attempt_at from guard.deliveries',
    $$values ('refused ***78', pg_temp.at(3.3))$$, 'it is tried again after two minutes, the error masked'
);

-- backoff
create function pg_temp.wait_after(p_attempt integer) returns integer language sql
as $$
    update guard.deliveries set attempts = p_attempt;
    select guard.settle_delivery(pg_temp.the_delivery(), p_attempt, 'HTTP 500');
    select extract(epoch from (d.next_attempt_at - now()))::integer / 60 from guard.deliveries as d;
$$;
select is(
    (select array_agg(pg_temp.wait_after(attempt)) from generate_series(1, 9) as attempt),
    '{1,2,4,8,16,32,60,60,60}', 'the wait doubles, up to an hour'
);
select set_eq('select pg_temp.claim(1000)', $$values ('10 of job_failed: 1 new')$$, 'the tenth');
select is(guard.settle_delivery(pg_temp.the_delivery(), 10, 'HTTP 500', pg_temp.at(1000)), 'dead', 'is the last');
select is_empty('select pg_temp.claim(9999)', 'it is given up');

-- dead letters
select is(guard.requeue_deliveries(pg_temp.the_delivery()), 1, 'an operator has it tried again');
select set_eq('select pg_temp.claim(0)', $$values ('1 of job_failed: 1 new')$$, 'from the start');
select is(guard.settle_delivery(pg_temp.the_delivery(), 1), 'sent', 'and now it is taken');
select throws_ok(
    'select guard.requeue_deliveries(pg_temp.the_delivery())', 'ZG602', null, 'what was sent is not sent again'
);
select throws_ok('select guard.discard_delivery(pg_temp.the_delivery())', 'ZG602', null, 'nor discarded');
select throws_ok('select guard.settle_delivery(-1, 1)', 'ZG602', null, 'there is no such delivery');
select is(guard.requeue_deliveries(), 0, 'nothing else was given up');

-- a sender that is killed by the message, each time
select guard.notify('critical', 'killer', null, null, null, 'x');
select guard.bundle_notifications('{json:0a1b2c3d}');
update guard.deliveries set attempts = 10 where status = 'pending';
select pg_temp.claim(0);
select results_eq(
    'select status, last_error is not null from guard.deliveries order by id desc limit 1', $$values ('dead', true)$$,
    'it ends, too'
);
select lives_ok('select guard.discard_delivery(pg_temp.the_delivery())', 'an operator lets it go');
select results_eq(
    'select action from guard.audit_log order by id',
    $$values ('requeue_delivery'), ('discard_delivery')$$, 'both are audited'
);

-- a clock that was set back, and the order
select guard.notify('critical', 'first', null, null, null, 'x');
select guard.bundle_notifications('{json:0a1b2c3d}', pg_temp.at(600));
select set_eq('select pg_temp.claim(0)', $$values ('1 of first: 1 new')$$, 'what is due ten hours from now is due now');
select guard.settle_delivery(pg_temp.the_delivery(), 1, 'HTTP 500', pg_temp.at(0));
select guard.notify('critical', 'second', null, null, null, 'x');
select guard.bundle_notifications('{json:0a1b2c3d}');
select results_eq(
    'select pg_temp.claim(2)', $$values ('1 of second: 1 new')$$, 'one that failed waits for those that did not'
);
select throws_ok(
    $$insert into guard.deliveries (message_id, channel, next_attempt_at)
    select m.id, 'json://user:secret@example.com', now() from guard.messages as m limit 1$$,
    '23514', null, 'an address cannot be stored'
);

select * from finish();
rollback;
