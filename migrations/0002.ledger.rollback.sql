drop table guard.audit_log;
drop table guard.settings;
drop table guard.objects;
drop table guard.object_log;
drop table guard.apply_runs;
