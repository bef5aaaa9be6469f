-- A table that guard created is dropped when it is empty; one that holds rows belongs to the application by now.
do $$
declare
    v_table text;
    v_filled boolean;
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
        execute format('select exists (select from %s)', v_table::regclass) into v_filled;
        if v_filled then
            raise warning 'table % holds rows and stays', v_table;
        else
            execute format('drop table %s', v_table::regclass);
        end if;
    end loop;
end
$$;

delete from guard.provenance where kind = 'table';
