-- The five roles. The schema guard and the record of what guard itself added to this database exist already: the
-- migration tool keeps its own tables in that schema, and it is by the record that guard knows the schema for its own.

-- Roles belong to the whole cluster: another database may have made them already.
insert into guard.provenance (kind, relation)
select 'role', wanted.rolname
from unnest(array['guard_owner', 'guard_app', 'guard_operator', 'guard_reader', 'guard_monitor']) as wanted (rolname)
where not exists (select from pg_catalog.pg_roles as r where r.rolname = wanted.rolname)
on conflict do nothing;

do $$
declare
    v_role text;
begin
    for v_role in
        select p.relation
        from guard.provenance as p
        where p.kind = 'role' and not exists (select from pg_catalog.pg_roles as r where r.rolname = p.relation)
    loop
        execute format('create role %I nologin', v_role);
    end loop;
    -- Guard's functions must see every row also where the application uses row-level security.
    if (select r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user) then
        if not (select r.rolbypassrls from pg_catalog.pg_roles as r where r.rolname = 'guard_owner') then
            alter role guard_owner bypassrls; -- a write to a catalog that all databases share: two at once collide
        end if;
    elsif not pg_has_role(current_user, 'guard_owner', 'usage') then
        execute format('grant guard_owner to %I', current_user);
    end if;
end
$$;

alter schema guard owner to guard_owner;

alter table guard.provenance owner to guard_owner;

-- Nobody may execute a function of guard's unless its file grants it.
alter default privileges for role guard_owner revoke execute on functions from public;

grant usage on schema guard to guard_app, guard_operator, guard_reader, guard_monitor;

comment on schema guard is
'Keeps the booking tables true: rules, alerts, queues, and the functions that applications call.';

comment on table guard.provenance is
'What guard itself added to this database and cluster, so that a rollback removes exactly that.';

comment on column guard.provenance.kind is 'role, extension, table, column or index.';
comment on column guard.provenance.relation is 'The role, the extension, or the qualified table or index.';
comment on column guard.provenance.name is 'The column; empty otherwise.';
comment on column guard.provenance.added_at is 'When guard added it.';
