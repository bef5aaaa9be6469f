revoke select on guard._yoyo_migration from guard_operator, guard_monitor;
