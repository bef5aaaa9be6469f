-- A sender's login is an operator and needs nothing else; nobody writes outbox and deliveries but through functions.
begin;
select plan(9);

create role guard_test_sender nologin;
grant guard_operator to guard_test_sender;
create role guard_test_reader nologin;
grant guard_reader to guard_test_reader;
grant guard_app to guard_test_reader;
select guard.notify('critical', 'job_failed', null, null, null, 'x');

set local role guard_test_sender;
select is(guard.bundle_notifications('{json:0a1b2c3d}'), 1, 'a sender bundles');
select isnt_empty($$select * from guard.claim_delivery('json:0a1b2c3d')$$, 'claims');
select is((select guard.settle_delivery(d.id, 1) from guard.deliveries as d), 'sent', 'and settles');
select throws_ok(
    $$update guard.deliveries set status = 'pending'$$, '42501', null, 'it cannot change a delivery otherwise'
);
select throws_ok('delete from guard.notifications', '42501', null, 'nor the outbox');
select throws_ok(
    $$select guard.notify('critical', 'x', null, null, null, 'x')$$, '42501', null, 'what happened is not for it to say'
);

set local role guard_test_reader;
select throws_ok('select from guard.messages', '42501', null, 'a reader does not see messages');
select throws_ok($$select guard.bundle_notifications('{json:0a1b2c3d}')$$, '42501', null, 'nor bundles');
select throws_ok($$select guard.claim_delivery('json:0a1b2c3d')$$, '42501', null, 'nor sends');

select * from finish();
rollback;
