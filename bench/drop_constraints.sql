-- Remove the constraints and indexes that guard added to the application's tables.
do $$
declare
    v_drop text;
begin
    for v_drop in
        select format('alter table %s drop constraint %I', c.conrelid::regclass, c.conname)
        from pg_catalog.pg_constraint as c
        where
            c.conrelid in ('public.calls'::regclass, 'public.appointments'::regclass)
            and c.conname like 'guard\_%'
        union all
        select format('drop index %s', i.indexrelid::regclass)
        from pg_catalog.pg_index as i
        inner join pg_catalog.pg_class as c on i.indexrelid = c.oid
        where
            i.indrelid in ('public.calls'::regclass, 'public.appointments'::regclass)
            and c.relname like 'guard\_%'
            and not exists (select from pg_catalog.pg_constraint as k where k.conindid = i.indexrelid)
    loop
        execute v_drop;
    end loop;
end
$$;
