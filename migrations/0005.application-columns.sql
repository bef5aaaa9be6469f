-- The columns that guard reads or writes, added where they are missing; nothing is retyped.
-- Every column is nullable or has a constant default, so that no table is rewritten.
insert into guard.provenance (kind, relation, name)
select 'column', wanted.relation, wanted.name
from (
    select 'public.calls', c.name
    from unnest(array[
        'retell_call_id', 'direction', 'status', 'from_number', 'to_number', 'customer_id', 'customer_link_status',
        'customer_link_method', 'customer_link_confidence', 'customer_linked_at', 'session_outcome',
        'appointment_made', 'appointment_link_status', 'appointment_linked_at', 'booking_id', 'booking_details',
        'booking_confirmed', 'call_successful', 'booking_failed', 'booking_failure_reason',
        'requires_manual_processing', 'created_at', 'updated_at', 'guard_corrections'
    ]) as c (name)
    union all
    select 'public.appointments', a.name
    from unnest(array[
        'call_id', 'customer_id', 'service_id', 'staff_id', 'calcom_v2_booking_id', 'source', 'status', 'starts_at',
        'ends_at', 'created_at', 'updated_at', 'guard_corrections'
    ]) as a (name)
) as wanted (relation, name)
where
    not exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = wanted.relation::regclass and a.attname = wanted.name and not a.attisdropped
    )
on conflict do nothing;

alter table public.calls
add column if not exists retell_call_id text,
add column if not exists direction text,
add column if not exists status text,
add column if not exists from_number text,
add column if not exists to_number text,
add column if not exists customer_id bigint,
add column if not exists customer_link_status text,
add column if not exists customer_link_method text,
add column if not exists customer_link_confidence numeric(5, 2),
add column if not exists customer_linked_at timestamptz,
add column if not exists session_outcome text,
add column if not exists appointment_made boolean default false,
add column if not exists appointment_link_status text,
add column if not exists appointment_linked_at timestamptz,
add column if not exists booking_id text,
add column if not exists booking_details jsonb,
add column if not exists booking_confirmed boolean default false,
add column if not exists call_successful boolean,
add column if not exists booking_failed boolean default false,
add column if not exists booking_failure_reason text,
add column if not exists requires_manual_processing boolean default false,
add column if not exists created_at timestamptz,
add column if not exists updated_at timestamptz,
add column if not exists guard_corrections jsonb;

alter table public.appointments
add column if not exists call_id bigint,
add column if not exists customer_id bigint,
add column if not exists service_id bigint,
add column if not exists staff_id bigint,
add column if not exists calcom_v2_booking_id text,
add column if not exists source text,
add column if not exists status text default 'booked',
add column if not exists starts_at timestamptz,
add column if not exists ends_at timestamptz,
add column if not exists created_at timestamptz,
add column if not exists updated_at timestamptz,
add column if not exists guard_corrections jsonb;

comment on column public.calls.guard_corrections is
'What guard repaired or let pass in the last write of this row: rule, mode, column, before, after; null if nothing.';
comment on column public.appointments.guard_corrections is
'What guard repaired or let pass in the last write of this row: rule, mode, column, before, after; null if nothing.';
