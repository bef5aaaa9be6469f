grant update (value, updated_at) on guard.settings to guard_operator;
alter table guard.settings drop column max_value;
alter table guard.settings drop column min_value;
