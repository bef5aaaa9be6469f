do $$
declare
    v_sequence text;
begin
    for v_sequence in
        select s.name
        from unnest(array[
            pg_get_serial_sequence('public.calls', 'id'), pg_get_serial_sequence('public.appointments', 'id')
        ]) as s (name)
        where s.name is not null
    loop
        execute format('revoke usage on sequence %s from guard_owner', v_sequence);
    end loop;
end
$$;

revoke insert on public.appointments from guard_owner;
revoke insert on public.calls from guard_owner;
