-- guard_owner writes calls and appointments for webhooks and intents: the rows, and the sequences of their ids.
grant insert on public.calls to guard_owner;
grant insert on public.appointments to guard_owner;

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
        execute format('grant usage on sequence %s to guard_owner', v_sequence);
    end loop;
end
$$;
