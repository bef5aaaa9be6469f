-- provides: function guard.note_suspects(text, bigint[])
-- provides: function guard.note_claims(bigint[])
--
-- Event-driven detection: what a write leaves suspicious is looked at once its grace has passed, by guard.judge_pending.
-- Who listens on the channel guard_pending hears of it at once.

-- What waits already is noted again: whoever judges it may not see this write, and must not be waited for.
-- Locks: ROW EXCLUSIVE on pending_checks.
create or replace function guard.note_suspects(p_entity_type text, p_ids bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_ids = '{}' then
        return;
    end if;
    insert into guard.pending_checks (call_id, appointment_id, due_at)
    select
        case p_entity_type when 'call' then s.id end,
        case p_entity_type when 'appointment' then s.id end,
        now() + (select max(r.grace) from guard.rules as r)
    from unnest(p_ids) as s (id);
    perform pg_notify('guard_pending', '');
end
$$;

comment on function guard.note_suspects(text, bigint[]) is
'Have calls or appointments looked at once every rule''s grace has passed.';

-- A call that claims a booking and is not linked yet. Judged from the row alone: no join on the path of a write.
-- A fault is counted and the write goes on.
create or replace function guard.note_claims(p_calls bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_calls = '{}' then
        return;
    end if;
    perform guard.note_suspects('call', array(
        select c.id from unnest(p_calls) as c (id) where guard.mode_for('missing_appointment', c.id) <> 'off'
    ));
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        perform guard.note_fault('note_claims', sqlstate, sqlerrm);
end
$$;

comment on function guard.note_claims(bigint[]) is 'Have calls that claim a booking looked at after the grace.';
