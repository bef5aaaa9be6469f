-- provides: function guard.note_claims(bigint[])
--
-- Event-driven detection: a call that claims a booking and is not linked yet is looked at once its grace has passed.
-- Judged from the row alone: no join on the path of a write.

-- Locks: ROW EXCLUSIVE on pending_checks. A fault is counted and the write goes on.
create or replace function guard.note_claims(p_calls bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into guard.pending_checks (call_id, due_at)
    select c.id, now() + r.grace
    from unnest(p_calls) as c (id)
    inner join guard.rules as r on r.rule = 'missing_appointment'
    where guard.mode_for(r.rule, c.id) <> 'off'
    on conflict (call_id) do nothing;
exception
    when others then
        perform guard.note_fault('note_claims', sqlstate, sqlerrm);
end
$$;

comment on function guard.note_claims(bigint[]) is 'Have calls that claim a booking looked at after the grace.';
