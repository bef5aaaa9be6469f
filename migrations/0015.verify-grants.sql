-- What guard verify reads of the migration tool's own tables.
grant select on guard._yoyo_migration to guard_operator, guard_monitor;
