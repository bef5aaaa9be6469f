-- A table that guard made goes if it is empty and nothing needs it; else it belongs to the application by now.
do $$
declare
    v_table text;
    v_filled boolean;
    v_detail text;
begin
    for v_table in
        select t.relation
        from unnest(array[
            'public.appointments', 'public.calls', 'public.staff', 'public.services', 'public.customers',
            'public.companies'
        ]) with ordinality as t (relation, position)
        join guard.provenance as p on p.kind = 'table' and p.relation = t.relation
        where to_regclass(t.relation) is not null
        order by t.position
    loop
        -- no row may come between the look and the drop
        execute format('lock table %s in access exclusive mode', v_table::regclass);
        execute format('select exists (select from %s)', v_table::regclass) into v_filled;
        if v_filled then
            raise warning 'table % holds rows and stays', v_table;
            continue;
        end if;
        begin
            execute format('drop table %s', v_table::regclass);
        exception
            when dependent_objects_still_exist then
                get stacked diagnostics v_detail = pg_exception_detail;
                raise warning 'table % stays: %', v_table, replace(v_detail, e'\n', '; ');
        end;
    end loop;
end
$$;

delete from guard.provenance where kind = 'table';
