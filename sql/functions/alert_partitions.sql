-- provides: function guard.ensure_alert_partitions(timestamp with time zone, integer)
--
-- Months of data_consistency_alerts, in UTC. Rows that arrived before their month had a partition stand in the default
-- partition; they are moved when the month is made. Idempotent; a second session waits for the advisory lock.
-- Locks: SHARE UPDATE EXCLUSIVE on the table and ACCESS EXCLUSIVE on the default partition, for each month made.
-- Raises ZG408 (no moment, or no number of months).

create or replace function guard.ensure_alert_partitions(p_from timestamp with time zone, p_months integer)
returns setof text
language plpgsql
volatile
security definer -- makes and attaches tables in schema guard
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_month timestamp with time zone;
    v_name text;
begin
    if p_from is null or not isfinite(p_from) or p_months is null or p_months not between 0 and 120 then
        raise exception using
            errcode = 'ZG408',
            message = 'partitions are made from a moment on, for 0 to 120 months more',
            hint = 'As in: select guard.ensure_alert_partitions(now(), 3).';
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.ensure_alert_partitions'));
    for v_month in
        select date_trunc('month', p_from) + make_interval(months => n) from generate_series(0, p_months) as n
    loop
        v_name := 'data_consistency_alerts_' || to_char(v_month, 'YYYY_MM');
        continue when to_regclass('guard.' || v_name) is not null;
        execute format(
            'create table guard.%I (like guard.data_consistency_alerts including defaults including constraints)', v_name
        );
        -- what is written meanwhile would stand in the way of attaching
        lock table guard.data_consistency_alerts_default in access exclusive mode;
        execute format(
            'with moved as ('
            '    delete from guard.data_consistency_alerts_default where detected_at >= %L and detected_at < %L returning *'
            ') insert into guard.%I select * from moved',
            v_month, v_month + interval '1 month', v_name
        );
        execute format(
            'alter table guard.data_consistency_alerts attach partition guard.%I for values from (%L) to (%L)',
            v_name, v_month, v_month + interval '1 month'
        );
        return next v_name;
    end loop;
end
$$;

comment on function guard.ensure_alert_partitions(timestamp with time zone, integer) is
'Make the monthly partitions of the alerts from a month on; returns the names of those that it made.';

grant execute on function guard.ensure_alert_partitions(timestamp with time zone, integer) to guard_operator;

do $$
begin
    perform guard.ensure_alert_partitions(now(), 3);
end
$$;
