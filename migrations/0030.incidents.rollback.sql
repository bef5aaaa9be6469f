delete from guard.pending_checks as p where p.call_id is null;
alter table guard.pending_checks drop constraint pending_checks_one_entity;
alter table guard.pending_checks drop column appointment_id;
drop index guard.pending_checks_call_idx;
alter table guard.pending_checks add primary key (call_id);
comment on table guard.pending_checks is
'Calls that claim a booking and must be looked at once their grace has passed.';
comment on column guard.pending_checks.call_id is 'The call.';
comment on column guard.pending_checks.created_at is 'When the claim was written.';
drop table guard.reconcile_progress;
drop table guard.baseline;
drop table guard.incidents;
