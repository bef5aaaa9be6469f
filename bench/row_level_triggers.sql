-- What guard's triggers replace: the triggers of the first design of this system, on the same tables. They fire for
-- each row and have no WHEN clause. Its fault of turning a deleted booking back into a phantom is mended here, so that
-- all variants end with the same rows.
create function bench.call_validate_outcome()
returns trigger
language plpgsql
as $$
begin
    if new.session_outcome = 'appointment_booked' and new.appointment_made is not true then
        new.appointment_made := true;
        insert into guard.data_consistency_alerts (
            alert_type, severity, entity_type, entity_id, description, metadata, auto_corrected, corrected_at
        )
        values (
            'session_outcome_mismatch', 'critical', 'call', new.id, 'appointment_made was set to true',
            jsonb_build_object('session_outcome', new.session_outcome), true, now()
        );
    elsif new.appointment_made and new.session_outcome <> 'appointment_booked' then
        insert into guard.data_consistency_alerts (
            alert_type, severity, entity_type, entity_id, description, metadata, auto_corrected, corrected_at
        )
        values (
            'appointment_made_mismatch', 'critical', 'call', new.id, 'session_outcome was set to appointment_booked',
            jsonb_build_object('session_outcome', new.session_outcome), true, now()
        );
        new.session_outcome := 'appointment_booked';
    end if;
    return new;
end
$$;

create function bench.call_set_direction()
returns trigger
language plpgsql
as $$
begin
    if new.direction is null then
        new.direction := 'inbound';
        insert into guard.data_consistency_alerts (
            alert_type, severity, entity_type, entity_id, description, auto_corrected, corrected_at
        )
        values ('missing_direction', 'warning', 'call', new.id, 'direction was set to inbound', true, now());
    end if;
    return new;
end
$$;

create function bench.call_sync_customer_link()
returns trigger
language plpgsql
as $$
begin
    if new.customer_id is not null and new.customer_link_status is distinct from 'linked' then
        new.customer_link_status := 'linked';
        new.customer_link_method := coalesce(new.customer_link_method, 'phone_match');
        new.customer_link_confidence := coalesce(new.customer_link_confidence, 100.00);
        new.customer_linked_at := coalesce(new.customer_linked_at, now());
        insert into guard.data_consistency_alerts (
            alert_type, severity, entity_type, entity_id, description, auto_corrected, corrected_at
        )
        values ('inconsistent_customer_link', 'warning', 'call', new.id, 'the customer was linked', true, now());
    end if;
    return new;
end
$$;

create function bench.appointment_sync_call()
returns trigger
language plpgsql
as $$
begin
    if tg_op = 'INSERT' then
        update public.calls
        set
            appointment_made = true,
            session_outcome = 'appointment_booked',
            appointment_link_status = 'linked',
            appointment_linked_at = now(),
            updated_at = now()
        where id = new.call_id;
    elsif not exists (select from public.appointments as a where a.call_id = old.call_id) then
        update public.calls
        set
            appointment_made = false,
            session_outcome = 'appointment_removed',
            appointment_link_status = 'unlinked',
            appointment_linked_at = null,
            updated_at = now()
        where id = old.call_id;
    end if;
    return null;
end
$$;

create trigger before_call_validate_outcome
before insert or update on public.calls
for each row
execute function bench.call_validate_outcome();

create trigger before_call_set_direction
before insert or update on public.calls
for each row
execute function bench.call_set_direction();

create trigger before_call_sync_customer_link
before insert or update on public.calls
for each row
execute function bench.call_sync_customer_link();

create trigger after_appointment_sync_call
after insert or delete on public.appointments
for each row
execute function bench.appointment_sync_call();
