-- provides: function guard.probe_rule(text)
--
-- Does a rule do what its mode says? Writes a sound call, breaks the rule with the statement that the rule registered,
-- looks at what happened, and takes everything back: the writes stand in a subtransaction that always ends in an error.
-- Ids are negative, so that no sequence moves. Runs with the caller's rights on the application's tables.
-- Locks: ROW EXCLUSIVE on calls and appointments, until the caller's transaction ends.
--
-- observed: refused; repaired; pending (a check was queued); recorded (it stands, with an alert); let through; or null
-- and a note when the rule has no probe or the rows could not be written.

create or replace function guard.probe_rule(p_rule text)
returns table (rule text, mode text, expected text, observed text, passed boolean, note text)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_rule guard.rules;
    v_id bigint;
    v_companies bigint[];
    v_customer bigint;
    v_staff bigint;
    v_stands boolean;
    v_alerted boolean;
    v_queued boolean;
begin
    select r.* into strict v_rule from guard.rules as r where r.rule = p_rule;
    rule := v_rule.rule;
    mode := v_rule.mode;
    -- an id that the rollout includes, if it includes any
    select coalesce(min(-n) filter (where guard.in_rollout(-n, v_rule.rollout_pct)), -1) into v_id
    from generate_series(1, 1000) as n;
    expected := case guard.mode_for(p_rule, v_id)
        when 'enforce' then 'refused'
        when 'correct' then case when v_rule.repairable then 'repaired' else 'recorded' end
        when 'observe' then 'recorded'
        else 'let through'
    end;
    if v_rule.constraint_kind in ('unique', 'exclude') and guard.index_in_force(p_rule) then
        expected := 'refused';
    end if;
    if v_rule.probe is null then
        note := 'the rule registers no probe';
        return next;
        return;
    end if;
    perform set_config('timezone', guard.setting('app_timezone'), true);

    begin
        v_companies := array(select c.id from public.companies as c order by c.id limit 2);
        if cardinality(v_companies) < 2 then
            insert into public.companies (id, name) values (-1, 'guard probe'), (-2, 'guard probe');
            v_companies := '{-1, -2}';
        end if;
        select min(c.id) into v_customer from public.customers as c;
        if v_customer is null then
            insert into public.customers (id, company_id, name)
            values (-1, v_companies[1], 'guard probe')
            returning id into v_customer;
        end if;
        select min(s.id) into v_staff from public.staff as s;
        if v_staff is null then
            insert into public.staff (id, company_id, name)
            values (-1, v_companies[1], 'guard probe')
            returning id into v_staff;
        end if;
        insert into public.calls (id, company_id, direction, status, booking_id, created_at, updated_at)
        values (v_id, v_companies[1], 'inbound', 'ended', 'guard-probe', '2000-01-01', '2000-01-01');

        begin
            execute v_rule.probe using v_id, v_id, v_companies[1], v_customer, v_companies[2], v_staff;
            execute format('select exists (select from guard.%I as v where v.entity_id = $1)', p_rule)
            into v_stands using v_id;
            v_alerted := exists (
                select from guard.data_consistency_alerts as a where a.alert_type = p_rule and a.entity_id = v_id
            );
            v_queued := exists (select from guard.pending_checks as c where c.call_id = v_id);
            observed := case
                when v_stands and v_alerted then 'recorded'
                when v_stands and v_queued and p_rule = 'missing_appointment' then 'pending'
                when v_stands then 'let through'
                when v_alerted then 'repaired'
                else 'repaired without a record'
            end;
            if v_stands then
                set constraints all immediate; -- what COMMIT would say
            end if;
        exception
            when others then
                if sqlstate = v_rule.errcode
                    or (sqlstate in ('23514', '23505', '23P01') and v_rule.constraint_kind is not null)
                then
                    observed := 'refused';
                else
                    note := format('%s [%s]', sqlerrm, sqlstate);
                end if;
        end;
        raise exception using errcode = 'ZG099', message = 'the probe takes its rows back';
    exception
        when sqlstate 'ZG099' then
            null;
        when others then
            note := format('the probe rows could not be written: %s [%s]', sqlerrm, sqlstate);
    end;
    passed := observed = expected
        or (observed = 'pending' and expected in ('repaired', 'recorded'));
    return next;
end
$$;

comment on function guard.probe_rule(text) is
'Break a rule inside a subtransaction that is taken back, and see whether it does what its mode says.';

grant execute on function guard.probe_rule(text) to guard_operator;
