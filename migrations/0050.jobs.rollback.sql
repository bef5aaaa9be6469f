delete from guard.objects as o where o.kind in ('job', 'procedure');
alter table guard.objects drop constraint objects_kind_check;
alter table guard.objects add constraint objects_kind_check
check (kind in ('function', 'view', 'trigger', 'rule', 'migration'));
drop table guard.job_runs;
drop table guard.jobs;
