-- A flood: a rule keeps so many incidents and counts the rest.
begin;
select plan(7);

update guard.rules set mode = 'off';
select lives_ok($$select guard.set_setting('incident_sample_cap', '10')$$, 'ten are kept');
insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction) select i, 1, null from generate_series(1, 25) as i;
update guard.rules set mode = 'observe' where rule = 'missing_direction';
select results_eq(
    'select found, new_incidents from guard.detect()', 'values (25::bigint, 10::bigint)',
    'all are counted, ten are kept'
);
select results_eq(
    $$select entity_type, details ->> 'found' from guard.incidents where rule = 'rule_overflow'$$,
    $$values ('rule', '25')$$, 'and that there are more is an incident'
);
insert into public.calls (id, company_id, direction) select i, 1, null from generate_series(26, 30) as i;
select results_eq(
    'select found, new_incidents from guard.detect()', 'values (30::bigint, 0::bigint)',
    'no more are added'
);
update public.calls set direction = 'inbound' where id > 3;
select results_eq('select found from guard.detect()', array[3::bigint], 'until they are repaired');
select results_eq(
    $$select status from guard.incidents where rule = 'rule_overflow'$$, array['resolved'], 'then the overflow is over'
);
select is(
    (select count(*) from guard.incidents where status <> 'resolved'), 3::bigint, 'and those that stand are incidents'
);

select * from finish();
rollback;
