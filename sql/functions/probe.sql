-- provides: function guard.probe_insert(text, jsonb)
-- provides: function guard.probe_rule(text)
--
-- Does a rule do what its mode says? Writes a sound call, breaks the rule with the statement that the rule registered,
-- looks at what happened, and takes everything back: the writes stand in a subtransaction that always ends in an error.
-- Ids are negative, so that no sequence moves. Runs with the caller's rights on the application's tables.
-- Locks: ROW EXCLUSIVE on calls and appointments, until the caller's transaction ends.
--
-- observed: refused; repaired; pending (a check was queued); recorded (it stands, with an alert); let through; or null
-- and a note when the rule has no probe or the rows could not be written, with the SQLSTATE of what kept them out.
-- probe_rule raises ZG010 (no such rule).

-- Inserts rows, given as an array of objects, into a table in schema public, in one statement. Columns that must have a
-- value and are not given get one: what is referenced, from a row that exists; else something of the type, for numbers
-- and text the row's id. So do those of a CHECK of guard's that no mark satisfies, from a row that satisfies it. Keys
-- that are no columns of the table are left out.
create or replace function guard.probe_insert(p_table text, p_rows jsonb)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_relation constant regclass := format('public.%I', p_table);
    v_rows jsonb := p_rows;
    v_column record;
    v_value jsonb;
begin
    for v_column in
        select
            a.attname as name,
            t.typname as type,
            t.typcategory as category,
            case when a.attnotnull then f.confrelid else a.attrelid end::regclass as relation,
            case when a.attnotnull then referenced.attname else a.attname end as source,
            (select to_jsonb(e.enumlabel) from pg_catalog.pg_enum as e where e.enumtypid = t.oid limit 1) as label
        from pg_catalog.pg_attribute as a
        inner join pg_catalog.pg_type as t on a.atttypid = t.oid
        left join pg_catalog.pg_constraint as f
            on a.attrelid = f.conrelid and f.contype = 'f' and f.conkey = array[a.attnum]
        left join pg_catalog.pg_attribute as referenced
            on f.confrelid = referenced.attrelid and f.confkey[1] = referenced.attnum
        where
            a.attrelid = v_relation and a.attnum > 0 and not a.attisdropped
            and not a.atthasdef and a.attidentity = ''
            and (
                a.attnotnull
                or exists (
                    select from pg_catalog.pg_constraint as k
                    where
                        k.conrelid = a.attrelid and k.contype = 'c' and a.attnum = any(k.conkey)
                        and k.conname ~ '^guard_' and pg_get_constraintdef(k.oid) !~ 'guard_corrections'
                )
            )
    loop
        v_value := null;
        if v_column.relation is not null then
            execute format(
                'select to_jsonb(s.%1$I) from %2$s as s where s.%1$I is not null limit 1',
                v_column.source, v_column.relation
            )
            into v_value;
        end if;
        select jsonb_agg(
            jsonb_build_object(
                v_column.name,
                coalesce(v_value, v_column.label, case
                    when v_column.category::text = any('{N,S}') then r.row -> 'id'
                    when v_column.category = 'B' then 'false'
                    when v_column.category = 'D' then '"2000-01-01 09:00"'
                    when v_column.category = 'T' then '"0"'
                    when v_column.category = 'I' then '"127.0.0.1"'
                    when v_column.category = 'A' then '[]'
                    when v_column.type = 'uuid' then to_jsonb(gen_random_uuid())
                    when v_column.type::text = any('{json,jsonb}') then '{}'
                    else '""'
                end)
            ) || r.row
        )
        into v_rows
        from jsonb_array_elements(v_rows) as r (row);
    end loop;
    execute (
        select format(
            'insert into %1$s (%2$s) overriding system value select %2$s from jsonb_populate_recordset(null::%1$s, $1)',
            v_relation, string_agg(quote_ident(a.attname), ', ')
        )
        from pg_catalog.pg_attribute as a
        where
            a.attrelid = v_relation and a.attnum > 0 and not a.attisdropped
            and v_rows -> 0 ? a.attname::text
    )
    using v_rows;
end
$$;

comment on function guard.probe_insert(text, jsonb) is
'Insert rows on trial, with a value in every column that must have one.';

grant execute on function guard.probe_insert(text, jsonb) to guard_operator;

create or replace function guard.probe_rule(p_rule text)
returns table (
    rule text, mode text, expected text, observed text, passed boolean, note text, errcode text
)
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
    select r.* into v_rule from guard.rules as r where r.rule = p_rule;
    if not found then
        raise exception using
            errcode = 'ZG010',
            message = format('there is no rule %s', coalesce(quote_literal(left(p_rule, 60)), 'without a name')),
            hint = 'select rule from guard.rules lists them';
    end if;
    rule := v_rule.rule;
    mode := v_rule.mode;
    -- an id that the rollout includes, if it includes any
    select coalesce(max(-n) filter (where guard.in_rollout(-n, v_rule.rollout_pct)), -1) into v_id
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
            perform guard.probe_insert(
                'companies', '[{"id": -1, "name": "guard probe"}, {"id": -2, "name": "guard probe"}]'
            );
            v_companies := '{-1, -2}';
        end if;
        select min(c.id) into v_customer from public.customers as c;
        if v_customer is null then
            v_customer := -1;
            perform guard.probe_insert('customers', jsonb_build_array(
                jsonb_build_object('id', v_customer, 'company_id', v_companies[1], 'name', 'guard probe')
            ));
        end if;
        select min(s.id) into v_staff from public.staff as s;
        if v_staff is null then
            v_staff := -1;
            perform guard.probe_insert('staff', jsonb_build_array(
                jsonb_build_object('id', v_staff, 'company_id', v_companies[1], 'name', 'guard probe')
            ));
        end if;
        perform guard.probe_insert('calls', jsonb_build_array(jsonb_build_object(
            'id', v_id, 'company_id', v_companies[1], 'retell_call_id', 'guard-probe', 'direction', 'inbound',
            'status', 'ended', 'booking_id', 'guard-probe', 'created_at', '2000-01-01', 'updated_at', '2000-01-01'
        )));

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
                elsif sqlstate = '23502' then
                    expected := 'refused';
                    observed := 'refused';
                    note := format('the table refuses such rows in every mode: %s', sqlerrm);
                else
                    note := format('%s [%s]', sqlerrm, sqlstate);
                    errcode := sqlstate;
                end if;
        end;
        raise exception using errcode = 'ZG099', message = 'the probe takes its rows back';
    exception
        when sqlstate 'ZG099' then
            null;
        when others then
            note := format('the probe rows could not be written: %s [%s]', sqlerrm, sqlstate);
            errcode := sqlstate;
    end;
    passed := observed = expected
        or (observed = 'pending' and expected in ('repaired', 'recorded'));
    return next;
end
$$;

comment on function guard.probe_rule(text) is
'Break a rule inside a subtransaction that is taken back, and see whether it does what its mode says.';

grant execute on function guard.probe_rule(text) to guard_operator;
