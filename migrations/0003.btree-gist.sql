-- Lets one index compare a staff member and a time range: what overlapping_appointment needs.
insert into guard.provenance (kind, relation)
select 'extension', 'btree_gist'
where not exists (select from pg_catalog.pg_extension as e where e.extname = 'btree_gist')
on conflict do nothing;

create extension if not exists btree_gist with schema guard;
