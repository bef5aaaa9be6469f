-- A call without a direction: recorded, repaired or refused, as the rule's mode says.
begin;
select plan(13);

insert into public.companies (id, name) values (1, 'A');

-- correct, with the constraint in force: what a table that guard made starts with
insert into public.calls (id, company_id) values (1, 1);
select is(
    (select c.direction from public.calls as c where c.id = 1), 'inbound',
    'correct: the direction becomes inbound'
);
select results_eq(
    $$select alert_type, entity_type, entity_id, company_id, auto_corrected, metadata -> 'changes'
    from guard.data_consistency_alerts$$,
    $$values ('missing_direction', 'call', 1::bigint, 1::bigint, true,
        '[{"column": "direction", "after": "inbound"}]'::jsonb)$$,
    'correct: one alert with the change'
);
update public.calls set direction = null where id = 1;
select is((select c.direction from public.calls as c where c.id = 1), 'inbound', 'correct: an update is repaired too');
insert into public.calls (id, company_id, direction) values (2, 1, 'outbound');
select is(
    (select count(*) from guard.data_consistency_alerts), 2::bigint, 'a sound row leaves no alert'
);

select guard.set_rule('missing_direction', 'observe');
insert into public.calls (id, company_id) values (3, 1);
select is((select c.direction from public.calls as c where c.id = 3), null, 'observe: the row is not changed');
select ok(
    exists (
        select from guard.data_consistency_alerts as a
        where a.entity_id = 3 and not a.auto_corrected and a.alert_type = 'missing_direction'
    ),
    'observe: it is recorded'
);
select results_eq(
    'select rule, severity, entity_type, entity_id, company_id from guard.missing_direction',
    $$values ('missing_direction', 'warning', 'call', 3::bigint, 1::bigint)$$,
    'the view finds it, and nothing else'
);

update public.calls set status = 'ended' where id = 3;
select is(
    (select count(*) from guard.data_consistency_alerts as a where a.entity_id = 3), 1::bigint,
    'observe: an update of another column does not record it again'
);

select guard.set_rule('missing_direction', 'off');
insert into public.calls (id, company_id) values (4, 1);
select is(
    (select count(*) from guard.data_consistency_alerts as a where a.entity_id = 4), 0::bigint,
    'off: nothing is recorded'
);

select guard.set_rule('missing_direction', 'enforce');
select throws_ok(
    'insert into public.calls (id, company_id) values (5, 1)', 'ZG104', null,
    'enforce: an insert is refused'
);
select throws_ok(
    'update public.calls set direction = null where id = 2', 'ZG104', null,
    'enforce: an update that breaks it is refused'
);
select lives_ok(
    $$update public.calls set status = 'ended again' where id = 4$$,
    'enforce: a row that was wrong before can still be written'
);
select is(
    (select c.direction from public.calls as c where c.id = 4), 'inbound', 'enforce: and is repaired by that write'
);

select * from finish();
rollback;
