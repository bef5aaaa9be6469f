-- A row that the application's own constraint keeps from being repaired stops no other row.
begin;
select plan(5);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction, status) select i, 1, null, 'ended' from generate_series(1, 9) as i;
alter table public.calls add constraint own_check check (status is distinct from 'locked' or direction is null);
update public.calls set status = 'locked' where id = 4;
update guard.rules set mode = 'correct' where rule = 'missing_direction';

select results_eq(
    'select examined, repaired, queued from guard.reconcile(false)', 'values (9, 8, 1)', 'all but the one are repaired'
);
select results_eq('select entity_id from guard.missing_direction', array[4::bigint], 'the one stands');
select results_eq(
    $$select call_id, context ->> 'error' like '23514:%' from guard.manual_review_queue$$, 'values (4::bigint, true)',
    'a person is told why'
);
select is(
    (select count(*) from guard.data_consistency_alerts where metadata ->> 'by' = 'repair'), 8::bigint,
    'eight repairs are recorded'
);
select is(nullif(current_setting('guard.repair', true), ''), null, 'nothing is left behind in the session');

select * from finish();
rollback;
