-- provides: view guard.missing_direction
-- provides: rule missing_direction
--
-- A call without a direction is counted neither as inbound nor as outbound.

create or replace view guard.missing_direction
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object('status', c.status) as details,
    c.id as row_id
from public.calls as c
inner join guard.rules as r on r.rule = 'missing_direction'
where c.direction is null;

select guard.register_rule(
    p_rule => 'missing_direction',
    p_severity => 'warning',
    p_entity_type => 'call',
    p_errcode => 'ZG104',
    p_description => 'the call has no direction',
    p_repair => 'direction becomes inbound',
    p_runbook => 'Write direction as inbound or outbound.',
    p_repairable => true,
    p_repair_with => 'guard.rewrite_calls',
    p_constraint_kind => 'check',
    p_constraint_definition =>
    $$check (direction is not null or (guard_corrections @> '[{"rule": "missing_direction"}]') is true)$$,
    p_probe => 'update public.calls set direction = null where id = $1'
);
