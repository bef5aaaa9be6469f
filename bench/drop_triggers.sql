-- Remove guard's triggers from the application's tables, and leave all else.
do $$
declare
    v_drop text;
begin
    for v_drop in
        select format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass)
        from pg_catalog.pg_trigger as t
        where t.tgrelid in ('public.calls'::regclass, 'public.appointments'::regclass) and not t.tgisinternal
    loop
        execute v_drop;
    end loop;
end
$$;
