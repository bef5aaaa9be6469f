-- What was wrong when guard came is known, and is counted down.
begin;
select plan(12);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction) values (1, 1, null), (2, 1, null);
update guard.rules set mode = 'observe';
select is((select sum(new_incidents)::integer from guard.detect()), 2, 'two incidents');

set local role guard_operator;
select results_eq(
    $$select rule, marked from guard.take_baseline() where marked > 0$$, $$values ('missing_direction', 2::bigint)$$,
    'two defects are known now'
);
select throws_ok($$select guard.take_baseline('nonsense')$$, 'ZG010', null, 'a rule that there is not');
reset role;
select set_eq('select resolved_by from guard.incidents', array['baseline'], 'their incidents are closed');

insert into public.calls (id, company_id, direction) values (3, 1, null);
select results_eq(
    $$select found, new_incidents from guard.detect() where rule = 'missing_direction'$$,
    'values (1::bigint, 1::bigint)', 'only what is new stands out'
);
select results_eq('select rule from guard.check_call(1)', array['missing_direction'], 'asked for, it is told');

update public.calls set direction = 'inbound' where id = 1;
select results_eq(
    'select rule, marked, standing from guard.refresh_baseline()',
    $$values ('missing_direction', 2::bigint, 1::bigint)$$, 'one is cleared'
);
update public.calls set direction = null where id = 1;
select results_eq(
    $$select found from guard.detect() where rule = 'missing_direction'$$, array[2::bigint],
    'what comes back after it was cleared is new'
);
select results_eq(
    $$select marked from guard.take_baseline('missing_direction')$$, array[2::bigint],
    'a second baseline adds what is new'
);
select results_eq(
    $$select found from guard.detect() where rule = 'missing_direction'$$, array[0::bigint], 'and all is known again'
);

update public.calls set direction = 'inbound' where id = 1;
select results_eq(
    $$select found from guard.detect('1000 years') where rule = 'missing_direction'$$, array[0::bigint],
    'a look at everything'
);
update public.calls set direction = null where id = 1;
select results_eq(
    $$select found from guard.detect() where rule = 'missing_direction'$$, array[1::bigint],
    'notes what is cleared, so that it is news when it comes back'
);

select * from finish();
rollback;
