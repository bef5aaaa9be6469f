-- provides: view guard.inconsistent_customer_link
-- provides: rule inconsistent_customer_link
--
-- A customer is set, but how the link was made is not: reports then show a match of 0 % for a customer who is linked.

create or replace view guard.inconsistent_customer_link
with (security_invoker = true)
as
select
    r.rule,
    r.severity,
    'call' as entity_type,
    c.id::bigint as entity_id,
    c.company_id::bigint as company_id,
    greatest(guard.instant(c.created_at), guard.instant(c.updated_at)) as occurred_at,
    jsonb_build_object(
        'customer_id', c.customer_id,
        'customer_link_status', c.customer_link_status,
        'customer_link_method', c.customer_link_method,
        'customer_link_confidence', c.customer_link_confidence
    ) as details,
    c.id as row_id
from public.calls as c
inner join guard.rules as r on r.rule = 'inconsistent_customer_link'
where
    c.customer_id is not null
    and (c.customer_link_status is null or c.customer_link_method is null or c.customer_link_confidence is null);

select guard.register_rule(
    p_rule => 'inconsistent_customer_link',
    p_severity => 'warning',
    p_entity_type => 'call',
    p_errcode => 'ZG107',
    p_description => 'customer_id is set, but customer_link_status, _method or _confidence is not',
    p_repair => 'what is null becomes linked, phone_match, 100.00',
    p_runbook => 'Write status, method and confidence together with customer_id.',
    p_repairable => true,
    p_repair_with => 'guard.rewrite_calls',
    p_constraint_kind => 'check',
    p_constraint_definition =>
    $$check (
        customer_id is null
        or (
            customer_link_status is not null
            and customer_link_method is not null
            and customer_link_confidence is not null
        )
        or (guard_corrections @> '[{"rule": "inconsistent_customer_link"}]') is true
    )$$,
    p_probe => $$update public.calls
    set customer_id = $4, customer_link_status = null, customer_link_method = null, customer_link_confidence = null
    where id = $1$$
);
