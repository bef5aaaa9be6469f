-- Three rules rest on the calls' rows, which inconsistent_link_status writes: they are enforced only where it does.
begin;
select plan(9);
set local client_min_messages = error;

select guard.set_rule('inconsistent_link_status', 'correct', 99);
select
    throws_ok(
        format('select guard.set_rule(%L, %L)', r.rule, 'enforce'), 'ZG015', null,
        r.rule || ' cannot be enforced while not all calls follow'
    )
from unnest(array['missing_appointment', 'orphaned_appointment', 'tenant_mismatch']) as r (rule);
select lives_ok($$select guard.set_rule('missing_direction', 'enforce')$$, 'a rule about one row can');
select lives_ok($$select guard.set_rule('tenant_mismatch', 'correct')$$, 'and any rule be corrected');

select guard.set_rule('inconsistent_link_status', 'correct');
select guard.set_rule('tenant_mismatch', 'enforce', 20);
select guard.set_rule('inconsistent_link_status', 'enforce', 10);
select ok(not guard.slips_through('tenant_mismatch'), 'at enforce the calls outside the rollout follow too');

select guard.set_rule('inconsistent_link_status', 'observe');
select ok(guard.slips_through('tenant_mismatch'), 'lowering is always possible, and leaves the others open');
select throws_ok(
    $$select guard.set_rule('tenant_mismatch', 'enforce', 30)$$, 'ZG015', null, 'a larger rollout is refused then'
);
select lives_ok($$select guard.set_rule('tenant_mismatch', 'enforce', 10)$$, 'a smaller one is not');

select * from finish();
rollback;
