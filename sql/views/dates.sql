-- provides: view guard_bi.dates
--
-- The date dimension, to join every *_date column with, so that days without rows show too.

create or replace view guard_bi.dates
with (security_invoker = true)
as
select
    d.calendar_date,
    extract(year from d.calendar_date)::integer as year,
    extract(quarter from d.calendar_date)::integer as quarter,
    extract(month from d.calendar_date)::integer as month,
    to_char(d.calendar_date, 'FMMonth') as month_name,
    extract(isoyear from d.calendar_date)::integer as iso_year,
    extract(week from d.calendar_date)::integer as iso_week,
    extract(day from d.calendar_date)::integer as day_of_month,
    extract(isodow from d.calendar_date)::integer as day_of_week,
    to_char(d.calendar_date, 'FMDay') as day_name,
    extract(isodow from d.calendar_date) > 5 as is_weekend
from (
    select g::date as calendar_date
    from generate_series(
        timestamp '2020-01-01', date_trunc('year', localtimestamp) + interval '2 years - 1 day', interval '1 day'
    ) as g
) as d;

comment on view guard_bi.dates is 'Every day from 2020 to the end of next year.';
comment on column guard_bi.dates.calendar_date is 'The day.';
comment on column guard_bi.dates.year is 'The year.';
comment on column guard_bi.dates.quarter is 'The quarter, 1 to 4.';
comment on column guard_bi.dates.month is 'The month, 1 to 12.';
comment on column guard_bi.dates.month_name is 'The month''s English name.';
comment on column guard_bi.dates.iso_year is 'The year that the ISO week belongs to.';
comment on column guard_bi.dates.iso_week is 'The ISO week, 1 to 53.';
comment on column guard_bi.dates.day_of_month is 'The day of the month, 1 to 31.';
comment on column guard_bi.dates.day_of_week is 'The day of the week: 1 is Monday, 7 is Sunday.';
comment on column guard_bi.dates.day_name is 'The day''s English name.';
comment on column guard_bi.dates.is_weekend is 'Whether it is a Saturday or Sunday.';

grant select on guard_bi.dates to guard_operator, guard_reader, guard_monitor;
