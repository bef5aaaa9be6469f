alter default privileges for role guard_owner grant execute on functions to public;

revoke usage on schema guard from guard_app, guard_operator, guard_reader, guard_monitor;

do $$
begin
    execute format('alter schema guard owner to %I', current_user);
    execute format('alter table guard.provenance owner to %I', current_user);
end
$$;

-- A role that another database of the cluster still uses stays.
do $$
declare
    v_role text;
begin
    for v_role in select p.relation from guard.provenance as p where p.kind = 'role' order by p.relation loop
        begin
            execute format('drop role if exists %I', v_role);
        exception
            when dependent_objects_still_exist then
                raise notice 'role % is used elsewhere in the cluster and stays', v_role;
        end;
    end loop;
end
$$;

delete from guard.provenance where kind = 'role';
