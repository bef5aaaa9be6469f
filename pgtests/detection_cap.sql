-- A flood: a rule keeps so many incidents and counts the rest.
begin;
select plan(14);

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
    $$select entity_type, details ->> 'found', description from guard.incidents where rule = 'rule_overflow'$$,
    $$values ('rule', '25', '25 rows break missing_direction, and no more than 10 are kept as incidents')$$,
    'and that there are more is an incident'
);
insert into public.calls (id, company_id, direction) select i, 1, null from generate_series(26, 30) as i;
select results_eq(
    'select found, new_incidents from guard.detect()', 'values (30::bigint, 0::bigint)',
    'no more are added'
);
update public.calls set created_at = now() - interval '2 hours', updated_at = now() - interval '2 hours';
select results_eq('select found from guard.detect()', array[0::bigint], 'in time they are older than the window');
select results_eq(
    $$select status, details ->> 'found' from guard.incidents where rule = 'rule_overflow'$$,
    $$values ('open', '30')$$, 'and there are more of them still'
);
update public.calls as c set direction = 'inbound'
from guard.incidents as i where i.entity_id = c.id and i.entity_type = 'call';
select results_eq(
    'select found, new_incidents from guard.detect()', 'values (0::bigint, 0::bigint)', 'people repair what they see'
);
select results_eq(
    'select found, new_incidents from guard.detect()', 'values (20::bigint, 10::bigint)',
    'then the next ones are looked for'
);
select results_eq(
    $$select status, details ->> 'found' from guard.incidents where rule = 'rule_overflow'$$,
    $$values ('open', '20')$$, 'and counted'
);
select results_eq('select found from guard.detect()', array[0::bigint], 'and not again while ten stand');
update public.calls
set direction = 'inbound'
where id > (select (array_agg(c.id order by c.id))[3] from public.calls as c where c.direction is null);
select results_eq('select found from guard.detect(''1000 years'')', array[3::bigint], 'until they are repaired');
select results_eq(
    $$select status from guard.incidents where rule = 'rule_overflow'$$, array['resolved'], 'then the overflow is over'
);
select is(
    (select count(*) from guard.incidents where status <> 'resolved'), 3::bigint, 'and those that stand are incidents'
);
update public.calls as c set direction = null, updated_at = now()
from guard.incidents as i where i.entity_id = c.id and i.entity_type = 'call' and i.status = 'resolved';
select guard.detect();
select is(
    (select count(*) from guard.incidents where status <> 'resolved' and rule = 'missing_direction'), 10::bigint,
    'those that come back are no more than are kept'
);

select * from finish();
rollback;
