-- A year's calls, one every two seconds up to now, two of five with an appointment. All are sound but for
-- bench.defects of the last hour, which break the rules in turn.
insert into public.companies (id, name, created_at, updated_at)
select n, 'company ' || n, localtimestamp as created_at, localtimestamp as updated_at
from generate_series(1, 20) as n;

insert into public.staff (id, company_id, name, created_at, updated_at)
select n, 1 + (n - 1) % 20, 'staff ' || n, localtimestamp as created_at, localtimestamp as updated_at
from generate_series(1, 200) as n;

insert into public.calls (
    id, company_id, retell_call_id, direction, status, from_number, to_number, customer_id, session_outcome,
    appointment_made, appointment_link_status, booking_id, booking_confirmed, booking_failed,
    requires_manual_processing, created_at, updated_at
)
select
    c.n, 1 + c.n % 20, 'call_' || c.n,
    case when c.defect = 0 then null else 'inbound' end,
    'ended', '+4915100000000', '+493000000000', null,
    case when c.defect in (1, 3) or (c.booked and c.defect is null) then 'appointment_booked' else 'abandoned' end,
    c.booked or coalesce(c.defect = 3, false),
    case when c.booked or c.defect = 4 then 'linked' end,
    case when c.booked then 'bk_' || c.n end,
    false, false, false, c.moment, c.moment
from (
    select
        i.n,
        case when i.n > size.calls - size.defects then i.n % 5 end as defect,
        i.n % 5 = 2 or (i.n % 5 = 1 and i.n <= size.calls - size.defects) as booked,
        localtimestamp(0) - (size.calls - i.n) * interval '2 seconds' as moment
    from (
        select
            current_setting('bench.calls')::bigint as calls,
            current_setting('bench.defects')::bigint as defects
    ) as size
    cross join lateral generate_series(1, size.calls) as i (n)
) as c;

insert into public.appointments (
    id, company_id, call_id, staff_id, calcom_v2_booking_id, source, status, starts_at, ends_at, created_at, updated_at
)
select
    c.id, c.company_id, c.id, 1 + c.id % 200, c.booking_id, 'retell_webhook', 'booked',
    c.slot, c.slot + interval '30 minutes', c.created_at, c.created_at
from (
    select
        k.id, k.company_id, k.booking_id, k.created_at,
        date_trunc('hour', localtimestamp) + (k.id / 200) * interval '30 minutes' as slot
    from public.calls as k
    where k.booking_id is not null
) as c;

vacuum (analyze) public.calls;
vacuum (analyze) public.appointments;
