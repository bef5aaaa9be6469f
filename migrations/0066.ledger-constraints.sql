-- The ledger learns two kinds of objects: guard's indexes and constraints on the application's tables.
-- guard.objects has some hundred rows, and nobody but apply writes it:
-- squawk-ignore-file ban-drop-constraint, constraint-missing-not-valid
set local role guard_owner;

alter table guard.objects drop constraint if exists objects_kind_check;
alter table guard.objects add constraint objects_kind_check
check (
    kind in ('function', 'procedure', 'view', 'trigger', 'rule', 'job', 'migration', 'index', 'constraint')
);

comment on column guard.objects.kind is
'function, procedure, view, trigger, rule, job, migration, index or constraint.';
comment on column guard.objects.identity is
'A regprocedure, a qualified view or index, table and trigger or constraint, a rule, a job, or a migration.';

-- Whether a table is guard's own decides which constraints verify expects.
grant select on guard.provenance to guard_operator, guard_monitor;
