-- What is past its time goes; what was not corrected stays longer; what an open incident points to stays.
begin;
select plan(20);

-- the day is 15 June 2031: corrected alerts are kept from 17 March 2031, others from 15 June 2030
select guard.ensure_alert_partitions('2030-01-01 UTC', 17);
insert into guard.data_consistency_alerts (
    id, alert_type, severity, entity_type, entity_id, description, detected_at, auto_corrected
)
values
(-1, 'missing_direction', 'warning', 'call', 1, 'old', '2030-02-10 UTC', false),
(-2, 'missing_direction', 'warning', 'call', 2, 'old, with an open incident', '2030-03-10 UTC', false),
(-3, 'missing_direction', 'warning', 'call', 3, 'old, of a month that stays', '2030-03-11 UTC', true),
(-4, 'missing_direction', 'warning', 'call', 4, 'not corrected', '2030-12-01 UTC', false),
(-5, 'missing_direction', 'warning', 'call', 5, 'corrected', '2030-12-01 UTC', true),
(-6, 'missing_direction', 'warning', 'call', 6, 'corrected a while ago', '2031-05-01 UTC', true),
(-7, 'missing_direction', 'warning', 'call', 7, 'corrected, with an open incident', '2030-12-02 UTC', true),
(-8, 'job_failed', 'critical', 'job', null, 'old, with an open incident', '2030-04-02 UTC', false),
(-9, 'orphaned_appointment', 'warning', 'call', 2, 'another rule', '2030-12-03 UTC', true);
insert into guard.incidents (fingerprint, rule, severity, entity_type, entity_id, description, status, resolved_at)
values
('missing_direction:call:1', 'missing_direction', 'warning', 'call', 1, 'x', 'resolved', '2030-02-11 UTC'),
('missing_direction:call:2', 'missing_direction', 'warning', 'call', 2, 'x', 'acknowledged', null),
('missing_direction:call:7', 'missing_direction', 'warning', 'call', 7, 'x', 'open', null),
('job_failed:job:report', 'job_failed', 'critical', 'job', null, 'x', 'open', null);

create function pg_temp.maintain() returns jsonb language plpgsql as $$
declare
    v_step jsonb;
    v_all jsonb;
begin
    loop
        v_step := guard.maintain_alerts('2031-06-15 UTC');
        v_all := guard.add_up(v_all, v_step - 'more');
        exit when not (v_step ->> 'more')::boolean;
    end loop;
    return v_all;
end
$$;
create function pg_temp.months() returns text[] language sql as $$
    select array_agg(right(c.relname, 7) order by c.relname)
    from pg_catalog.pg_class as c
    where c.relname ~ '^data_consistency_alerts_(2030|2031)_\d\d$' and c.relispartition
$$;

create temporary table done as select pg_temp.maintain() as did;
select is((select d.did ->> 'blocked' from done as d), '0', 'nothing stood in the way');
select is((select d.did ->> 'deleted' from done as d), '3', 'alerts go one by one from months that stay');
select is(
    pg_temp.months(),
    array['2030_03', '2030_04']
    || array(select to_char(m, 'YYYY_MM') from generate_series('2030-06-01', '2031-09-01', interval '1 month') as m),
    'months that are past their time are dropped whole, and three are made ahead'
);
select results_eq(
    'select id from guard.data_consistency_alerts where id < 0 order by id desc',
    'values (-2::bigint), (-4), (-6), (-7), (-8)', 'what is left'
);
select is(
    pg_temp.maintain(), '{"made": 0, "blocked": 0, "deleted": 0, "dropped": 0}'::jsonb,
    'the second time there is nothing'
);
update guard.incidents set status = 'resolved', resolved_at = '2031-06-01 UTC' where status <> 'resolved';
select is(
    pg_temp.maintain(), '{"made": 0, "blocked": 0, "deleted": 1, "dropped": 2}'::jsonb,
    'once the incidents are resolved, so it goes with them'
);
select set_config('guard_test.keep', (guard.set_setting('alert_retention_days', '400')).value, true);
select is((pg_temp.maintain() ->> 'deleted'), '0', 'what was not corrected is never kept for less than what was');
select guard.set_setting('uncorrected_alert_retention_days', '1');
select guard.set_setting('alert_retention_days', '1');
select is((pg_temp.maintain() ->> 'dropped')::integer, 12, 'per setting');

-- batches
insert into guard.validation_metrics (success, duration_ms, created_at)
select true, 1, '2030-01-01 UTC' from generate_series(1, 10001);
select is(
    guard.prune_history('2031-06-15 UTC') -> 'more', 'true'::jsonb, 'a batch is 10000: there is more'
);
select is(
    guard.prune_history('2031-06-15 UTC') -> 'validations', '1'::jsonb, 'then there is the rest'
);
select is(guard.prune_history('2031-06-15 UTC') -> 'more', 'false'::jsonb, 'then there is nothing');

-- each kind: one that goes, one that stays
insert into guard.circuit_breaker_events (circuit_key, event, from_state, to_state, generation, created_at)
values
('a', 'override', 'closed', 'closed', 1, '2031-03-01 UTC'),
('b', 'override', 'closed', 'closed', 1, '2031-04-01 UTC');
insert into guard.circuit_breaker_metrics (circuit_key, minute, node)
values ('a', '2031-03-01 UTC', 'n'), ('b', '2031-04-01 UTC', 'n');
insert into guard.webhook_events (source, event, digest, payload, action, received_at)
values ('calcom', 'e', 'a', '{}', 'x', '2031-03-01 UTC'), ('calcom', 'e', 'b', '{}', 'x', '2031-04-01 UTC');
insert into guard.faults (place, errcode, message, created_at)
values ('a', 'XX000', 'x', '2031-03-01 UTC'), ('b', 'XX000', 'x', '2031-04-01 UTC');
insert into guard.job_runs (job, runner, status, started_at, finished_at)
values ('a', 'tick', 'failed', '2031-05-01 UTC', '2031-05-01 UTC'), ('b', 'tick', 'failed', '2031-06-10 UTC', now());
insert into guard.job_runs (job, runner, status, started_at) values ('c', 'tick', 'running', '2031-05-01 UTC');
insert into guard.messages (id, kind, severity, title, body, notifications, throttled_from, created_at)
overriding system value
select
    -m.id as id, m.kind, 'info' as severity, 'x' as title, 'x' as body, 1 as notifications, m.made_at,
    m.made_at as created_at
from (
    values
    (1, 'sent', timestamptz '2031-03-01 UTC'), (2, 'young', '2031-04-01 UTC'), (3, 'dead', '2031-03-01 UTC'),
    (4, 'pending', '2031-03-01 UTC')
) as m (id, kind, made_at);
insert into guard.deliveries (message_id, channel, status, next_attempt_at, sent_at)
values
(-1, 'json:00000000', 'sent', now(), now()),
(-2, 'json:00000000', 'sent', now(), now()),
(-3, 'json:00000000', 'dead', now(), null),
(-3, 'json:00000001', 'sent', now(), now()),
(-4, 'json:00000000', 'pending', now(), null);
insert into guard.notifications (severity, kind, message, message_id, created_at)
select 'info', m.kind, 'x', m.id, m.created_at from guard.messages as m
union all
values
('info', 'waits', 'x', null::bigint, timestamptz '2031-03-01 UTC'),
('info', 'nobody sends', 'x', null, timestamptz '2030-03-01 UTC');
insert into guard.incidents (fingerprint, rule, severity, entity_type, description, status, resolved_at, first_seen_at)
values
('a', 'r', 'info', 'rule', 'x', 'resolved', '2030-06-01 UTC', '2020-01-01 UTC'),
('b', 'r', 'info', 'rule', 'x', 'resolved', '2030-07-01 UTC', '2020-01-01 UTC'),
('c', 'r', 'info', 'rule', 'x', 'open', null, '2020-01-01 UTC');
select guard.prune_history('2031-06-15 UTC');
select results_eq('select circuit_key from guard.circuit_breaker_events', $$values ('b')$$, 'events of circuits');
select results_eq('select circuit_key from guard.circuit_breaker_metrics', $$values ('b')$$, 'and their counters');
select results_eq('select digest from guard.webhook_events', $$values ('b')$$, 'webhooks');
select results_eq('select place from guard.faults', $$values ('b')$$, 'faults');
select results_eq(
    'select job from guard.job_runs order by 1', $$values ('b'), ('c')$$, 'runs, but for one that goes on'
);
select results_eq(
    'select kind from guard.notifications order by 1', $$values ('dead'), ('pending'), ('waits'), ('young')$$,
    'messages that were sent; the others wait for somebody'
);
select results_eq(
    $$select fingerprint from guard.incidents where rule = 'r' order by 1$$, $$values ('b'), ('c')$$,
    'incidents that were resolved, however old those are that stand'
);
select is(
    (select count(*) from guard.settings where name like '%retention_days' and unit = 'days'), 5::bigint,
    'how long is a setting'
);

set local role guard_operator;
select lives_ok('select guard.maintain_alerts(), guard.prune_history()', 'operators may do it too');

select * from finish();
rollback;
