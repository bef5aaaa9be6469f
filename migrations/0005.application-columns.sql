-- The columns that guard reads or writes, added where they are missing; nothing is retyped.
-- Every column is nullable or has a constant default, so that no table is rewritten.
insert into guard.provenance (kind, relation, name)
select 'column', wanted.relation, wanted.name
from (
    values
    ('public.calls', 'retell_call_id'),
    ('public.calls', 'direction'),
    ('public.calls', 'status'),
    ('public.calls', 'from_number'),
    ('public.calls', 'to_number'),
    ('public.calls', 'customer_id'),
    ('public.calls', 'customer_link_status'),
    ('public.calls', 'customer_link_method'),
    ('public.calls', 'customer_link_confidence'),
    ('public.calls', 'customer_linked_at'),
    ('public.calls', 'session_outcome'),
    ('public.calls', 'appointment_made'),
    ('public.calls', 'appointment_link_status'),
    ('public.calls', 'appointment_linked_at'),
    ('public.calls', 'booking_id'),
    ('public.calls', 'booking_details'),
    ('public.calls', 'booking_confirmed'),
    ('public.calls', 'call_successful'),
    ('public.calls', 'booking_failed'),
    ('public.calls', 'booking_failure_reason'),
    ('public.calls', 'requires_manual_processing'),
    ('public.calls', 'created_at'),
    ('public.calls', 'updated_at'),
    ('public.calls', 'guard_corrections'),
    ('public.appointments', 'call_id'),
    ('public.appointments', 'customer_id'),
    ('public.appointments', 'service_id'),
    ('public.appointments', 'staff_id'),
    ('public.appointments', 'calcom_v2_booking_id'),
    ('public.appointments', 'source'),
    ('public.appointments', 'status'),
    ('public.appointments', 'starts_at'),
    ('public.appointments', 'ends_at'),
    ('public.appointments', 'created_at'),
    ('public.appointments', 'updated_at'),
    ('public.appointments', 'guard_corrections')
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
