-- provides: function guard.appointment_begin_write()
-- provides: function guard.appointment_find_call()
-- provides: function guard.appointment_inserted()
-- provides: function guard.appointment_updated()
-- provides: function guard.appointment_deleted()
-- provides: function guard.appointment_truncated()
-- provides: trigger public.appointments before_insert_appointment_begin
-- provides: trigger public.appointments before_insert_appointment_find_call
-- provides: trigger public.appointments before_update_appointment_begin
-- provides: trigger public.appointments before_update_appointment_find_call
-- provides: trigger public.appointments after_insert_appointment_sync_call
-- provides: trigger public.appointments after_update_appointment_sync_call
-- provides: trigger public.appointments after_delete_appointment_sync_call
-- provides: trigger public.appointments after_truncate_appointment_sync_call
--
-- What happens when an appointment is written: its calls follow it, in one UPDATE per statement, and what breaks a
-- rule is recorded or refused. A trigger with transition tables takes exactly one event, hence one function each.
--
-- Concurrency. Two sessions may add and remove appointments of one call at once.
-- 1. The removing side locks the calls first, in the order of their ids, and judges in a new statement: it sees what
--    the sessions it waited for have committed. A single UPDATE with NOT EXISTS would judge by its old snapshot.
-- 2. The adding side needs no lock of its own, but writes the call's row even if it says so already: a session that
--    removes must wait for this one, and then sees the new appointment.
-- 3. The removing side too writes every affected call, also where an appointment remains: in REPEATABLE READ two
--    removers that only locked would each see the other's row and both keep the call linked. A write makes one of them
--    fail with a serialization error.
-- At enforce duplicates and overlaps are looked for in turns while their index is not in force (guard.take_turns): the
-- one who waited looks with a new snapshot. In REPEATABLE READ there is none.
-- Locks: advisory ones for these turns first; FOR NO KEY UPDATE on the affected calls; ROW EXCLUSIVE on the alerts where
-- something is wrong.
--
-- The mode of inconsistent_link_status decides whether calls follow: at correct and enforce they do.
-- Local timestamp columns are written in settings.app_timezone: set in a function with a `set timezone` clause, the
-- zone ends with the function. guard.writer holds the trigger depth at which guard writes calls, so that the triggers
-- on calls let that write be, and no write of an application's own trigger beneath it.
-- Plans are cached for the session, and must suit one row as well as a bulk load: calls and other appointments are
-- looked up by arrays and scalar subqueries, never by a join with a transition table, the old and the new rows meet in
-- full joins, which are never nested loops, and plans are generic. Just-in-time compilation would cost more than it
-- saves.
-- TRUNCATE takes its lock after the snapshot of a transaction above READ COMMITTED, and would judge by what it cannot
-- see: it is refused there (ZG020).
-- All are security definer: whoever writes an appointment need not have rights on calls or on guard's tables.
-- Raises the rules' own SQLSTATEs, ZG1xx. Applying this file takes SHARE ROW EXCLUSIVE on public.appointments.

create or replace function guard.appointment_begin_write()
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

-- An appointment that came from a call and does not name it: the one call of its company that knows the booking id.
create or replace function guard.appointment_find_call()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c_rule constant text := 'orphaned_appointment';
    v_call_id bigint;
    v_mode text := guard.write_mode(
        c_rule, new.id, tg_op = 'UPDATE' and old.source = 'retell_webhook' and old.call_id is null
    );
begin
    if v_mode = 'enforce' then
        perform guard.refuse(c_rule, new.id);
    elsif v_mode = 'correct' then
        select min(c.id) into v_call_id
        from (
            select k.id
            from public.calls as k
            where k.booking_id = new.calcom_v2_booking_id and k.company_id = new.company_id
            for key share
        ) as c
        having count(*) = 1;
    end if;
    if v_call_id is null then
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, case v_mode when 'correct' then 'observe' else v_mode end
        );
    else
        new.call_id := v_call_id;
        new.guard_corrections := guard.mark(
            new.guard_corrections, c_rule, v_mode, 'call_id', null, to_jsonb(v_call_id)
        );
    end if;
    return new;
end
$$;

-- With the other scans off the index on calls is read in the order of ids, and two bulk loads lock their calls in the
-- same order.
-- What an application's own trigger has deleted or moved since is not gained: hence the look at appointments.
create or replace function guard.appointment_inserted()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
    v_follow_pct constant integer := guard.follow_pct();
    v_writer constant text := coalesce(current_setting('guard.writer', true), '');
    v_unique constant boolean := guard.index_in_force('duplicate_booking');
    v_exclude constant boolean := guard.index_in_force('overlapping_appointment');
    v_gained constant bigint[] := array(
        select distinct n.call_id
        from new_rows as n
        where (select true from public.appointments as a where a.call_id = n.call_id limit 1)
    );
    v_foreign bigint[];
    v_marked bigint[];
    v_booked bigint[];
    v_planned bigint[];
begin
    if not v_unique and guard.is_enforced('duplicate_booking') then
        perform guard.take_turns('duplicate_booking', array(
            select hashtextextended(n.calcom_v2_booking_id::text, 0) from new_rows as n
        ));
    end if;
    if not v_exclude and guard.is_enforced('overlapping_appointment') then
        perform guard.take_turns('overlapping_appointment', array(
            select hashint8extended(n.staff_id, 0) from new_rows as n
        ));
    end if;
    if v_follow_pct > 0 and v_gained <> '{}' then
        perform
            set_config('timezone', s.value, true),
            set_config('guard.writer', pg_trigger_depth()::text, true)
        from guard.settings as s
        where s.name = 'app_timezone';
        -- an outcome that is overwritten is marked, so that it is not lost
        update public.calls as c
        set
            appointment_made = true,
            session_outcome = 'appointment_booked',
            appointment_link_status = 'linked',
            appointment_linked_at = case
                when c.appointment_link_status = 'linked' then coalesce(c.appointment_linked_at, now())
                else now()
            end,
            guard_corrections = case
                when c.session_outcome <> 'appointment_booked' then guard.mark(
                    null, 'inconsistent_link_status', 'correct',
                    'session_outcome', to_jsonb(c.session_outcome), to_jsonb(text 'appointment_booked')
                )
            end,
            updated_at = now()
        where c.id = any(v_gained) and (v_follow_pct = 100 or guard.in_rollout(c.id, v_follow_pct));
        perform set_config('guard.writer', v_writer, true);
    end if;
    if v_follow_pct < 100 then
        perform guard.record_link_status(v_gained);
    end if;
    select
        array_agg(n.id) filter (
            where n.call_id is not null
            and (
                select c.company_id is not distinct from n.company_id from public.calls as c where c.id = n.call_id
            ) is not true
        ),
        array_agg(n.id) filter (where n.guard_corrections is not null),
        array_agg(n.id) filter (
            where not v_unique
            and (
                select true from public.appointments as a
                where a.calcom_v2_booking_id = n.calcom_v2_booking_id and a.id <> n.id
                limit 1
            )
        ),
        array_agg(n.id) filter (where n.staff_id is not null and n.starts_at is not null and not v_exclude)
    into v_foreign, v_marked, v_booked, v_planned
    from new_rows as n;
    if coalesce(v_foreign, v_marked, v_booked, v_planned) is not null then
        perform guard.judge_appointments(v_foreign, v_marked, v_booked, v_planned);
    end if;
    return null;
end
$$;

-- Moving an appointment is gaining it here and losing it there.
create or replace function guard.appointment_updated()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
    v_unique constant boolean := guard.index_in_force('duplicate_booking');
    v_exclude constant boolean := guard.index_in_force('overlapping_appointment');
    v_foreign bigint[];
    v_marked bigint[];
    v_booked bigint[];
    v_planned bigint[];
begin
    if not v_unique and guard.is_enforced('duplicate_booking') then
        perform guard.take_turns('duplicate_booking', array(
            select hashtextextended(written.booking_id::text, 0)
            from (
                select n.id, n.calcom_v2_booking_id as booking_id from new_rows as n
                except
                select o.id, o.calcom_v2_booking_id from old_rows as o
            ) as written
        ));
    end if;
    if not v_exclude and guard.is_enforced('overlapping_appointment') then
        perform guard.take_turns('overlapping_appointment', array(
            select hashint8extended(written.staff_id, 0)
            from (
                select n.id, n.staff_id, n.starts_at, n.ends_at, n.status from new_rows as n
                except
                select o.id, o.staff_id, o.starts_at, o.ends_at, o.status from old_rows as o
            ) as written
        ));
    end if;
    perform guard.calls_follow(array(
        select distinct moved.call_id
        from old_rows as o
        full join new_rows as n on o.id = n.id
        cross join lateral (values (o.call_id), (n.call_id)) as moved (call_id)
        where
            (o.call_id, o.company_id, o.source) is distinct from (n.call_id, n.company_id, n.source)
            and moved.call_id is not null
    ));
    -- what was wrong before this statement is not judged again: only what it changed
    select
        array_agg(n.id) filter (
            where n.call_id is not null
            and (n.call_id, n.company_id, n.source) is distinct from (o.call_id, o.company_id, o.source)
            and (
                select c.company_id is not distinct from n.company_id from public.calls as c where c.id = n.call_id
            ) is not true
        ),
        array_agg(n.id) filter (where n.guard_corrections is not null),
        array_agg(n.id) filter (
            where not v_unique and n.calcom_v2_booking_id is distinct from o.calcom_v2_booking_id
            and (
                select true from public.appointments as a
                where a.calcom_v2_booking_id = n.calcom_v2_booking_id and a.id <> n.id
                limit 1
            )
        ),
        array_agg(n.id) filter (
            where n.id is not null and not v_exclude
            and (
                n.staff_id, n.starts_at, n.ends_at,
                n.status::text <> all('{cancelled,rejected,rescheduled,no_show}')
            ) is distinct from (
                o.staff_id, o.starts_at, o.ends_at,
                o.status::text <> all('{cancelled,rejected,rescheduled,no_show}')
            )
        )
    into v_foreign, v_marked, v_booked, v_planned
    from new_rows as n
    full join old_rows as o on n.id = o.id;
    if coalesce(v_foreign, v_marked, v_booked, v_planned) is not null then
        perform guard.judge_appointments(v_foreign, v_marked, v_booked, v_planned);
    end if;
    return null;
end
$$;

create or replace function guard.appointment_deleted()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
    perform guard.calls_follow(array(select distinct o.call_id from old_rows as o where o.call_id is not null));
    return null;
end
$$;

-- TRUNCATE holds ACCESS EXCLUSIVE on appointments: no other session adds one meanwhile.
create or replace function guard.appointment_truncated()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
    if guard.follow_pct() > 0 and current_setting('transaction_isolation') <> 'read committed' then
        raise exception using
            errcode = 'ZG020',
            message = 'appointments cannot be truncated in a transaction whose snapshot is older than the lock',
            hint = 'Use READ COMMITTED, or DELETE.';
    end if;
    perform guard.calls_follow(array(
        select c.id from public.calls as c where c.appointment_made or c.appointment_link_status = 'linked'
    ));
    return null;
end
$$;

-- Triggers belong to the table: from here on as its owner.
reset role;

create or replace trigger before_insert_appointment_begin
before insert on public.appointments
for each row
when (
    new.guard_corrections is not null
    and current_setting('guard.writer', true) is distinct from pg_trigger_depth()::text
)
execute function guard.appointment_begin_write();

create or replace trigger before_insert_appointment_find_call
before insert on public.appointments
for each row
when (new.source = 'retell_webhook' and new.call_id is null)
execute function guard.appointment_find_call();

create or replace trigger before_update_appointment_begin
before update on public.appointments
for each row
when (
    new.guard_corrections is not null
    and current_setting('guard.writer', true) is distinct from pg_trigger_depth()::text
)
execute function guard.appointment_begin_write();

create or replace trigger before_update_appointment_find_call
before update on public.appointments
for each row
when (new.source = 'retell_webhook' and new.call_id is null)
execute function guard.appointment_find_call();

create or replace trigger after_insert_appointment_sync_call
after insert on public.appointments
referencing new table as new_rows
for each statement
execute function guard.appointment_inserted();

create or replace trigger after_update_appointment_sync_call
after update on public.appointments
referencing old table as old_rows new table as new_rows
for each statement
execute function guard.appointment_updated();

create or replace trigger after_delete_appointment_sync_call
after delete on public.appointments
referencing old table as old_rows
for each statement
execute function guard.appointment_deleted();

create or replace trigger after_truncate_appointment_sync_call
after truncate on public.appointments
for each statement
execute function guard.appointment_truncated();
