revoke select on guard.provenance from guard_operator, guard_monitor;
delete from guard.objects as o where o.kind in ('index', 'constraint');
alter table guard.objects drop constraint objects_kind_check;
alter table guard.objects add constraint objects_kind_check
check (kind in ('function', 'procedure', 'view', 'trigger', 'rule', 'job', 'migration'));
comment on column guard.objects.kind is 'function, view, trigger, rule or migration.';
comment on column guard.objects.identity is
'A regprocedure, a qualified view, table and trigger, a rule, or a migration.';
