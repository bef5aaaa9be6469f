-- What guard verify reads of the migration tool's own table, which is not there where a plan's statements were run by
-- hand.
do $$
begin
    if to_regclass('guard._yoyo_migration') is not null then
        grant select on guard._yoyo_migration to guard_operator, guard_monitor;
    end if;
end
$$;
