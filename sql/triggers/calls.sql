-- provides: function guard.call_exists(bigint, text)
-- provides: function guard.call_begin_write()
-- provides: function guard.call_set_direction()
-- provides: function guard.call_sync_customer_link()
-- provides: function guard.call_sync_link_status()
-- provides: function guard.call_validate_outcome()
-- provides: function guard.call_change_company()
-- provides: function guard.call_note_failure()
-- provides: function guard.call_require_appointment()
-- provides: function guard.call_log_write()
-- provides: function guard.call_deleted()
-- provides: function guard.call_truncated()
-- provides: trigger public.calls before_insert_call_begin
-- provides: trigger public.calls before_insert_call_note_failure
-- provides: trigger public.calls before_insert_call_set_direction
-- provides: trigger public.calls before_insert_call_sync_customer_link
-- provides: trigger public.calls before_insert_call_sync_link_status
-- provides: trigger public.calls before_insert_call_validate_outcome
-- provides: trigger public.calls before_update_call_begin
-- provides: trigger public.calls before_update_call_change_company
-- provides: trigger public.calls before_update_call_note_failure
-- provides: trigger public.calls before_update_call_set_direction
-- provides: trigger public.calls before_update_call_sync_customer_link
-- provides: trigger public.calls before_update_call_sync_link_status
-- provides: trigger public.calls before_update_call_validate_outcome
-- provides: trigger public.calls after_insert_call_require_appointment
-- provides: trigger public.calls after_update_call_require_appointment
-- provides: trigger public.calls after_insert_call_log_write
-- provides: trigger public.calls after_update_call_log_write
-- provides: trigger public.calls after_delete_call_check_appointments
-- provides: trigger public.calls after_truncate_call_check_appointments
--
-- What happens when a call is written.
--
-- BEFORE ROW: only it can save a row that a CHECK would refuse. Each function runs on the rows that its WHEN clause
-- picks, that is on defective rows alone; triggers of one event fire in the order of their names, and each sees what
-- the one before it changed. They write to no table: what they did is marked in guard_corrections.
-- AFTER STATEMENT: turns marks into alerts, and calls that claim a booking into pending checks, one INSERT each.
-- At COMMIT: a claim that has no appointment is refused if missing_appointment is enforced.
-- A claim is judged where the row does not say linked, and where it says so although BEFORE found no appointment: it
-- then carries a mark of inconsistent_link_status that repaired nothing.
--
-- A BEFORE UPDATE trigger holds the row's lock when it looks for an appointment, and a volatile function takes a new
-- snapshot for it: what another session committed while this one waited is seen.
--
-- All are security definer: whoever writes a call need not have rights on guard's tables. Trigger functions cannot be
-- called directly. guard.writer holds the trigger depth at which guard itself writes calls.
-- Raises the rules' own SQLSTATEs, ZG1xx. Applying this file takes ACCESS EXCLUSIVE on public.calls for an instant.

-- The row that INSERT ... ON CONFLICT DO UPDATE proposes for a call that exists is let through as it is: EXCLUDED must
-- hold what the application wrote, and BEFORE UPDATE judges the row that is really written.
create or replace function guard.call_exists(p_id bigint, p_retell_call_id text)
returns boolean
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select exists (select from public.calls as c where c.id = p_id)
        or exists (select from public.calls as c where c.retell_call_id = p_retell_call_id)
$$;

comment on function guard.call_exists(bigint, text) is 'Whether an INSERT meets a call that is there already.';

-- Marks describe the last write: an application's write starts with none.
create or replace function guard.call_begin_write()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.guard_corrections := null;
    return new;
end
$$;

create or replace function guard.call_set_direction()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_mode text := case
        when tg_op = 'INSERT' and guard.call_exists(new.id, new.retell_call_id) then 'pass'
        else guard.write_mode('missing_direction', new.id, tg_op = 'UPDATE' and old.direction is null)
    end;
begin
    if v_mode = 'enforce' then
        perform guard.refuse('missing_direction', new.id);
    elsif v_mode = 'correct' then
        new.direction := 'inbound';
        new.guard_corrections := guard.mark(
            new.guard_corrections, 'missing_direction', v_mode, 'direction', null, to_jsonb(new.direction)
        );
    else
        new.guard_corrections := guard.mark(new.guard_corrections, 'missing_direction', v_mode);
    end if;
    return new;
end
$$;

create or replace function guard.call_sync_customer_link()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c_rule constant text := 'inconsistent_customer_link';
    v_mode text := case
        when tg_op = 'INSERT' and guard.call_exists(new.id, new.retell_call_id) then 'pass'
        else guard.write_mode(
            c_rule, new.id,
            tg_op = 'UPDATE' and old.customer_id is not null and (
                old.customer_link_status is null
                or old.customer_link_method is null
                or old.customer_link_confidence is null
            )
        )
    end;
begin
    if v_mode = 'enforce' then
        perform guard.refuse(c_rule, new.id);
    elsif v_mode is distinct from 'correct' then
        new.guard_corrections := guard.mark(new.guard_corrections, c_rule, v_mode);
        return new;
    end if;
    if new.customer_link_status is null then
        new.customer_link_status := 'linked';
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode, 'customer_link_status', null, to_jsonb(new.customer_link_status)
        );
    end if;
    if new.customer_link_method is null then
        new.customer_link_method := 'phone_match';
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode, 'customer_link_method', null, to_jsonb(new.customer_link_method)
        );
    end if;
    if new.customer_link_confidence is null then
        new.customer_link_confidence := 100.00;
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode,
            'customer_link_confidence', null, to_jsonb(new.customer_link_confidence)
        );
    end if;
    return new;
end
$$;

-- The application wrote the link status itself: it must say what the appointments say.
create or replace function guard.call_sync_link_status()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c_rule constant text := 'inconsistent_link_status';
    v_booked constant boolean := exists (select from public.appointments as a where a.call_id = new.id);
    v_status constant text := case when v_booked then 'linked' else 'unlinked' end;
    v_mode text;
begin
    if (new.appointment_link_status is not distinct from 'linked') = v_booked
        and (new.appointment_made is true or not v_booked)
    then
        return new;
    end if;
    v_mode := case
        when tg_op = 'INSERT' and guard.call_exists(new.id, new.retell_call_id) then 'pass'
        else guard.write_mode(
            c_rule, new.id,
            tg_op = 'UPDATE' and old.appointment_link_status is not distinct from new.appointment_link_status
            and (old.appointment_made is not distinct from new.appointment_made or not v_booked)
        )
    end;
    if v_mode = 'enforce' then
        perform guard.refuse(c_rule, new.id);
    elsif v_mode is distinct from 'correct' then
        new.guard_corrections := guard.mark(new.guard_corrections, c_rule, v_mode);
        return new;
    end if;
    if new.appointment_link_status is distinct from v_status then
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode,
            'appointment_link_status', to_jsonb(new.appointment_link_status), to_jsonb(v_status)
        );
        new.appointment_link_status := v_status;
    end if;
    if v_booked and new.appointment_made is not true then
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode,
            'appointment_made', to_jsonb(new.appointment_made), to_jsonb(true)
        );
        new.appointment_made := true;
    end if;
    if v_booked and new.session_outcome is distinct from 'appointment_booked' then
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode,
            'session_outcome', to_jsonb(new.session_outcome), to_jsonb(text 'appointment_booked')
        );
        new.session_outcome := 'appointment_booked';
    end if;
    return new;
end
$$;

-- Outcome and flag contradict each other. Whichever says booked is believed: if an appointment exists it is right, and
-- if none does the row may still follow within the grace; the pending check looks again.
create or replace function guard.call_validate_outcome()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule text;
    v_mode text;
begin
    if new.appointment_made then
        v_rule := 'appointment_made_mismatch';
        v_mode := guard.write_mode(
            v_rule, new.id,
            tg_op = 'UPDATE' and old.appointment_made and old.session_outcome <> 'appointment_booked'
        );
    else
        v_rule := 'session_outcome_mismatch';
        v_mode := guard.write_mode(
            v_rule, new.id,
            tg_op = 'UPDATE' and old.session_outcome = 'appointment_booked' and old.appointment_made is not true
        );
    end if;
    if tg_op = 'INSERT' and guard.call_exists(new.id, new.retell_call_id) then
        v_mode := 'pass';
    end if;
    if v_mode = 'enforce' then
        perform guard.refuse(v_rule, new.id);
    elsif v_mode is distinct from 'correct' then
        new.guard_corrections := guard.mark(new.guard_corrections, v_rule, v_mode);
    elsif new.appointment_made then
        new.guard_corrections := guard.mark(
            new.guard_corrections, v_rule, v_mode,
            'session_outcome', to_jsonb(new.session_outcome), to_jsonb(text 'appointment_booked')
        );
        new.session_outcome := 'appointment_booked';
    else
        new.guard_corrections := guard.mark(
            new.guard_corrections, v_rule, v_mode,
            'appointment_made', to_jsonb(new.appointment_made), to_jsonb(true)
        );
        new.appointment_made := true;
    end if;
    return new;
end
$$;

-- A call that changes its company may leave its appointments behind in the old one: the AFTER trigger looks.
create or replace function guard.call_change_company()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.guard_corrections := guard.mark(new.guard_corrections, 'tenant_mismatch', 'pass');
    return new;
end
$$;

create or replace function guard.call_note_failure()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.guard_corrections := guard.mark(
        new.guard_corrections, 'recent_creation_failure', guard.write_mode('recent_creation_failure', new.id, false)
    );
    return new;
end
$$;

-- Deferred to COMMIT: by then the appointment that the call claims must be there. The row may have changed since.
create or replace function guard.call_require_appointment()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if guard.write_mode('missing_appointment', new.id, false) = 'enforce'
        and exists (select from public.calls as c where c.id = new.id and c.appointment_made)
        and not exists (select from public.appointments as a where a.call_id = new.id)
    then
        perform guard.refuse('missing_appointment', new.id);
    end if;
    return null;
end
$$;

-- One look at the statement's rows; nothing more where all are sound.
create or replace function guard.call_log_write()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_marked jsonb;
    v_met record;
    v_moved bigint[];
    v_appointments bigint[];
    v_calls bigint[];
begin
    if not exists (
        select from new_rows as n
        where
            n.guard_corrections is not null
            or (n.appointment_made and n.appointment_link_status is distinct from 'linked')
    ) then
        return null;
    end if;

    -- a row that was let through because its call was there, and then went in after all: that call was deleted
    -- meanwhile. It is refused or recorded here; writing it once more has it repaired, and no other session sees it
    -- in between.
    if tg_op = 'INSERT' then
        for v_met in
            select m.rule, guard.mode_for(m.rule, n.id) as mode, array_agg(n.id) as calls
            from new_rows as n
            cross join lateral jsonb_to_recordset(n.guard_corrections) as m (rule text, mode text)
            where n.guard_corrections is not null and m.mode = 'pass'
            group by m.rule, guard.mode_for(m.rule, n.id)
        loop
            if v_met.mode = 'correct' then
                update public.calls as c set updated_at = c.updated_at where c.id = any(v_met.calls);
            elsif v_met.mode <> 'off' then
                perform guard.record_violations(v_met.rule, v_met.calls, v_met.calls);
            end if;
        end loop;
    end if;

    -- marks that only let a row through are not recorded: a bulk update of old dirt has one on every row
    select jsonb_agg(jsonb_build_object('id', n.id, 'company_id', n.company_id, 'marks', n.guard_corrections))
    into v_marked
    from new_rows as n
    where n.guard_corrections @? '$[*] ? (@.mode != "pass")';
    if v_marked is not null then
        perform guard.record_corrections('call', v_marked);
    end if;

    v_moved := array(select n.id from new_rows as n where n.guard_corrections @> '[{"rule": "tenant_mismatch"}]');
    if v_moved <> '{}' then
        select array_agg(a.id), array_agg(a.call_id) into v_appointments, v_calls
        from public.appointments as a
        where
            a.call_id = any(v_moved)
            and a.company_id is distinct from (select c.company_id from public.calls as c where c.id = a.call_id);
        if v_appointments is not null then
            perform guard.record_violations('tenant_mismatch', v_appointments, v_calls);
        end if;
    end if;

    perform guard.note_claims(array(
        select n.id from new_rows as n
        where
            n.appointment_made
            and (
                n.appointment_link_status is distinct from 'linked'
                or n.guard_corrections @? '$[*] ? (@.rule == "inconsistent_link_status" && !exists(@.column))'
            )
    ));
    return null;
end
$$;

-- Calls that are gone: their appointments are orphans now.
create or replace function guard.call_deleted()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_appointments bigint[];
    v_calls bigint[];
begin
    select array_agg(a.id), array_agg(a.call_id) into v_appointments, v_calls
    from public.appointments as a
    where a.source = 'retell_webhook' and a.call_id = any(array(select o.id from old_rows as o));
    if v_appointments is not null then
        perform guard.record_violations('orphaned_appointment', v_appointments, v_calls);
    end if;
    return null;
end
$$;

create or replace function guard.call_truncated()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_appointments bigint[];
    v_calls bigint[];
begin
    select array_agg(a.id), array_agg(a.call_id) into v_appointments, v_calls
    from public.appointments as a
    where a.source = 'retell_webhook' and a.call_id is not null;
    if v_appointments is not null then
        perform guard.record_violations('orphaned_appointment', v_appointments, v_calls);
    end if;
    return null;
end
$$;

-- Triggers belong to the table: from here on as its owner. A constraint trigger cannot be replaced, only made anew;
-- that takes the strongest lock, so it comes first.
reset role;

drop trigger if exists after_insert_call_require_appointment on public.calls;
create constraint trigger after_insert_call_require_appointment
after insert on public.calls
deferrable initially deferred
for each row
when (
    new.appointment_made
    and (
        new.appointment_link_status is distinct from 'linked'
        or new.guard_corrections @? '$[*] ? (@.rule == "inconsistent_link_status" && !exists(@.column))'
    )
)
execute function guard.call_require_appointment();

drop trigger if exists after_update_call_require_appointment on public.calls;
create constraint trigger after_update_call_require_appointment
after update on public.calls
deferrable initially deferred
for each row
when (
    new.appointment_made
    and (
        new.appointment_link_status is distinct from 'linked'
        or new.guard_corrections @? '$[*] ? (@.rule == "inconsistent_link_status" && !exists(@.column))'
    )
    and (old.appointment_made is not true or old.appointment_link_status = 'linked')
)
execute function guard.call_require_appointment();

create or replace trigger before_insert_call_begin
before insert on public.calls
for each row
when (
    new.guard_corrections is not null
    and current_setting('guard.writer', true) is distinct from pg_trigger_depth()::text
)
execute function guard.call_begin_write();

create or replace trigger before_insert_call_note_failure
before insert on public.calls
for each row
when (
    new.session_outcome::text = any('{creation_failed,booking_failed}')
)
execute function guard.call_note_failure();

create or replace trigger before_insert_call_set_direction
before insert on public.calls
for each row
when (
    new.direction is null
)
execute function guard.call_set_direction();

create or replace trigger before_insert_call_sync_customer_link
before insert on public.calls
for each row
when (
    new.customer_id is not null
    and (
        new.customer_link_status is null
        or new.customer_link_method is null
        or new.customer_link_confidence is null
    )
)
execute function guard.call_sync_customer_link();

create or replace trigger before_insert_call_sync_link_status
before insert on public.calls
for each row
when (
    new.appointment_link_status = 'linked'
)
execute function guard.call_sync_link_status();

create or replace trigger before_insert_call_validate_outcome
before insert on public.calls
for each row
when (
    (new.session_outcome = 'appointment_booked' and new.appointment_made is not true)
    or (new.appointment_made and new.session_outcome <> 'appointment_booked')
)
execute function guard.call_validate_outcome();

create or replace trigger before_update_call_begin
before update on public.calls
for each row
when (
    new.guard_corrections is not null
    and current_setting('guard.writer', true) is distinct from pg_trigger_depth()::text
)
execute function guard.call_begin_write();

create or replace trigger before_update_call_change_company
before update on public.calls
for each row
when (
    new.company_id is distinct from old.company_id
)
execute function guard.call_change_company();

create or replace trigger before_update_call_note_failure
before update on public.calls
for each row
when (
    new.session_outcome::text = any('{creation_failed,booking_failed}')
    and new.session_outcome is distinct from old.session_outcome
)
execute function guard.call_note_failure();

create or replace trigger before_update_call_set_direction
before update on public.calls
for each row
when (
    new.direction is null
)
execute function guard.call_set_direction();

create or replace trigger before_update_call_sync_customer_link
before update on public.calls
for each row
when (
    new.customer_id is not null
    and (
        new.customer_link_status is null
        or new.customer_link_method is null
        or new.customer_link_confidence is null
    )
)
execute function guard.call_sync_customer_link();

create or replace trigger before_update_call_sync_link_status
before update on public.calls
for each row
when (
    (
        new.appointment_link_status is distinct from old.appointment_link_status
        or (new.appointment_link_status = 'linked' and (old.appointment_made and new.appointment_made) is not true)
    )
    and current_setting('guard.writer', true) is distinct from pg_trigger_depth()::text
)
execute function guard.call_sync_link_status();

create or replace trigger before_update_call_validate_outcome
before update on public.calls
for each row
when (
    (new.session_outcome = 'appointment_booked' and new.appointment_made is not true)
    or (new.appointment_made and new.session_outcome <> 'appointment_booked')
)
execute function guard.call_validate_outcome();

create or replace trigger after_insert_call_log_write
after insert on public.calls
referencing new table as new_rows
for each statement
execute function guard.call_log_write();

create or replace trigger after_update_call_log_write
after update on public.calls
referencing new table as new_rows
for each statement
execute function guard.call_log_write();

create or replace trigger after_delete_call_check_appointments
after delete on public.calls
referencing old table as old_rows
for each statement
execute function guard.call_deleted();

create or replace trigger after_truncate_call_check_appointments
after truncate on public.calls
for each statement
execute function guard.call_truncated();
