-- The report job makes up for the days on which it did not run, each day in a step of its own, yesterday first.
begin;
select plan(9);

select guard.set_setting('app_timezone', 'Asia/Tokyo');
create function pg_temp.day(p_ago integer) returns date language sql as $$
    select (now() at time zone 'Asia/Tokyo')::date - p_ago
$$;
create function pg_temp.step() returns jsonb language plpgsql as $$
declare
    v_result jsonb;
begin
    execute (select j.command from guard.jobs as j where j.job = 'report') into v_result;
    return v_result;
end
$$;
create function pg_temp.run() returns integer language plpgsql as $$
begin
    for v_steps in 1..30 loop
        if (pg_temp.step() -> 'more')::boolean is not true then
            return v_steps;
        end if;
    end loop;
end
$$;
create temporary view reports as
select (now() at time zone 'Asia/Tokyo')::date - r.report_date as ago, r.report -> 'complete' as complete
from guard.daily_reports as r;

select is(pg_temp.run(), 1, 'the first time: one report');
select results_eq('select * from reports', $$values (1, 'true'::jsonb)$$, 'of yesterday');
select is(pg_temp.step(), '{"reports": 0, "more": false}', 'which is made once');

-- days were missed: reports of 1 and 4 days ago are there, and one that was made before its day was over
delete from guard.daily_reports;
select guard.daily_report(pg_temp.day(4));
select guard.daily_report(pg_temp.day(3));
update guard.daily_reports set report = jsonb_set(report, '{complete}', 'false') where report_date = pg_temp.day(3);
select is(
    pg_temp.step(), jsonb_build_object('reports', 1, 'more', true), 'a step makes one report'
);
select results_eq('select min(ago) from reports', 'values (1)', 'of yesterday first');
select is(pg_temp.run(), 2, 'and goes on');
select results_eq(
    'select * from reports order by ago', $$select g, 'true'::jsonb from generate_series(1, 4) as g$$,
    'until there is no gap'
);
select is(
    (select count(*) from guard.notifications where kind = 'daily_report'), 2::bigint, 'yesterday''s alone is announced'
);

-- the last report is a year old
delete from guard.daily_reports;
select guard.daily_report(pg_temp.day(365));
select is(pg_temp.run(), 14, 'it goes back two weeks');

select * from finish();
rollback;
