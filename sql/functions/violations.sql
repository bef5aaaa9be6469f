-- provides: function guard.refuse(text, bigint)
-- provides: function guard.record_violations(text, bigint[], bigint[])
-- provides: function guard.note_fault(text, text, text)
--
-- What happens about a violation that a statement leaves behind and that nothing repaired.

-- Raises the rule's own SQLSTATE. Names ids only: no phone number, no free text of the row.
create or replace function guard.refuse(p_rule text, p_entity_id bigint)
returns void
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule guard.rules;
begin
    select r.* into strict v_rule from guard.rules as r where r.rule = p_rule;
    raise exception using
        errcode = v_rule.errcode,
        message = format('%s: %s', p_rule, v_rule.description),
        detail = format('%s %s; nothing was written.', initcap(v_rule.entity_type), p_entity_id),
        hint = format(
            '%s To let such writes through: select guard.set_rule(%L, %L).', v_rule.runbook, p_rule, 'observe'
        ),
        schema = 'public',
        table = v_rule.entity_type || 's',
        constraint = 'guard_' || p_rule;
end
$$;

comment on function guard.refuse(text, bigint) is 'Raise the error of a rule that stands at enforce.';

-- p_ids: the rows that break the rule; p_keys: for each, the id whose hash decides the rollout.
-- Refuses if the rule is enforced for any of them, else records one alert each. Locks: ROW EXCLUSIVE on the alerts.
create or replace function guard.record_violations(p_rule text, p_ids bigint[], p_keys bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_refused bigint;
begin
    select min(v.id) into v_refused
    from unnest(p_ids, p_keys) as v (id, key)
    where guard.mode_for(p_rule, v.key) = 'enforce';
    if v_refused is not null then
        perform guard.refuse(p_rule, v_refused);
    end if;
    insert into guard.data_consistency_alerts (
        alert_type, severity, entity_type, entity_id, company_id, description, metadata
    )
    select
        r.rule,
        r.severity,
        r.entity_type,
        v.id,
        case r.entity_type
            when 'call' then (select c.company_id from public.calls as c where c.id = v.id)
            else (select a.company_id from public.appointments as a where a.id = v.id)
        end,
        r.description,
        jsonb_build_object('mode', 'observe')
    from unnest(p_ids, p_keys) as v (id, key)
    inner join guard.rules as r on r.rule = p_rule
    where guard.mode_for(p_rule, v.key) <> 'off';
    perform guard.note_suspects(
        (select r.entity_type from guard.rules as r where r.rule = p_rule),
        array(select v.id from unnest(p_ids, p_keys) as v (id, key) where guard.mode_for(p_rule, v.key) <> 'off')
    );
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        if v_refused is not null then
            raise;
        end if;
        perform guard.note_fault('record_violations', sqlstate, sqlerrm);
end
$$;

comment on function guard.record_violations(text, bigint[], bigint[]) is
'Refuse or record what a statement left behind, as the rule''s mode says.';

-- A fault of guard's own must not fail a booking that is only being observed: count it, and go on.
create or replace function guard.note_fault(p_place text, p_errcode text, p_message text)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    raise warning using
        errcode = '01ZG0',
        message = format('guard could not do its part in %s: %s', p_place, guard.mask_phones(p_message)),
        hint = 'The write went through. Run guard verify.';
    insert into guard.faults (place, errcode, message) values (p_place, p_errcode, guard.mask_phones(p_message));
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        -- this is all that can be done
        raise warning using
            errcode = '01ZG0',
            message = format('guard could not count its fault in %s: %s', p_place, sqlstate);
end
$$;

comment on function guard.note_fault(text, text, text) is
'Count a fault of guard''s own that was not allowed to fail an application''s write.';
