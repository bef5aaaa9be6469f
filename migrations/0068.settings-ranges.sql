-- A setting knows its range, and is changed by guard.set_setting only, which checks and audits the change.
set local role guard_owner;

alter table guard.settings add column if not exists min_value numeric;
alter table guard.settings add column if not exists max_value numeric;

comment on column guard.settings.min_value is 'The least value that it may have; null where it is no number.';
comment on column guard.settings.max_value is 'The greatest value that it may have; null where it is no number.';

revoke update (value, updated_at) on guard.settings from guard_operator;
