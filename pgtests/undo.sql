-- Repairs can be taken back, as long as nobody has changed the values since.
begin;
select plan(14);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (
    id, company_id, direction, session_outcome, appointment_made, appointment_link_status, booking_id, created_at,
    updated_at
)
select c.*, now() - interval '1 day', now() - interval '1 day'
from (
    values
    (1, 1, null, null, false, null, null),
    (2, 1, 'inbound', 'appointment_booked', false, null, null),
    (3, 1, null, null, false, null, null),
    (5, 1, 'inbound', 'callback', false, null, 'bk_5')
) as c (id, company_id, direction, outcome, made, link, booking_id);
insert into public.appointments (id, company_id, call_id, source, calcom_v2_booking_id)
values (5, 1, null, 'retell_webhook', 'bk_5');
create temporary view rows as
select 'call' as kind, to_jsonb(c) - '{updated_at,guard_corrections}'::text[] as content from public.calls as c
union all
select 'appointment', to_jsonb(a) - 'guard_corrections' from public.appointments as a;
create temporary table before as select * from rows;

select is(
    (select marked from guard.take_baseline('missing_direction') where marked > 0), 2::bigint, 'two defects are known'
);
update guard.rules set mode = 'correct' where enforceable;
select is((select sum(repaired)::integer from guard.reconcile(false)), 5, 'five repairs');
select throws_ok(
    $$select guard.undo(now() - interval '1 hour')$$, 'ZG406',
    (
        select
            string_agg(r.rule, ', ' order by r.rule)
            || ' repair rows as they are written: what is undone would be repaired again'
        from guard.rules as r
        where
            exists (
                select from guard.data_consistency_alerts as a
                where a.alert_type = r.rule and a.metadata @> '{"by": "repair"}'
            )
    ),
    'not while the rules would repair it again; all of them are named'
);
update guard.rules set mode = 'observe';
select throws_ok($$select guard.undo(now() + interval '1 hour')$$, 'ZG407', null, 'not since a moment to come');
update public.calls set direction = 'outbound' where id = 3;

set local role guard_operator;
select results_eq(
    $$select rule, skipped from guard.undo(now() - interval '1 hour') where skipped > 0$$,
    $$values ('missing_direction', 1::bigint)$$, 'what was changed since is skipped'
);
select is_empty($$select * from guard.undo(now() - interval '1 hour')$$, 'all is undone at once');
select throws_ok('select guard.undo(null)', 'ZG407', null, 'since when?');
select throws_ok($$select guard.undo('-infinity')$$, 'ZG407', null, 'not since ever');
select throws_ok('select guard.undo(now(), 0)', 'ZG405', null, 'a batch of nothing');
reset role;
select is((select direction from public.calls where id = 3), 'outbound', 'the later value stays');
select results_eq(
    $$select kind, content from rows where (content ->> 'id')::integer <> 3 order by kind, content ->> 'id'$$,
    $$select kind, content from before where (content ->> 'id')::integer <> 3 order by kind, content ->> 'id'$$,
    'everything else is as it was'
);
select results_eq(
    $$select 'undo'::text from guard.audit_log where action = 'undo'$$, array['undo'], 'it is audited'
);
select results_eq(
    'select entity_id from guard.baseline where cleared_at is null', array[1::bigint],
    'what was known before it was repaired is known again'
);
select is(nullif(current_setting('guard.repair', true), ''), null, 'nothing is left behind in the session');

select * from finish();
rollback;
