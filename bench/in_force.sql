-- The constraints and indexes of the application's two tables, by name.
select k.conrelid::regclass::text as relation, k.conname as name
from pg_catalog.pg_constraint as k
where k.conrelid in ('public.calls'::regclass, 'public.appointments'::regclass) and k.contype <> 't'
union all
select i.indrelid::regclass::text, c.relname
from pg_catalog.pg_index as i
inner join pg_catalog.pg_class as c on i.indexrelid = c.oid
where
    i.indrelid in ('public.calls'::regclass, 'public.appointments'::regclass)
    and not exists (select from pg_catalog.pg_constraint as k where k.conindid = i.indexrelid and k.contype <> 'f')
order by relation, name
