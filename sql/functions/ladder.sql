-- provides: function guard.in_rollout(bigint, integer)
-- provides: function guard.mode_for(text, bigint)
-- provides: function guard.write_mode(text, bigint, boolean)
--
-- Which rung of the ladder a rule stands on for one call. Modes and percentages are rows of guard.rules: a change
-- takes effect with the next statement and takes no lock that a writer waits for.

create or replace function guard.in_rollout(p_key bigint, p_pct integer)
returns boolean
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    -- hashint8extended is signed
    select p_pct >= 100 or ((pg_catalog.hashint8extended(p_key, 0) % 100) + 100) % 100 < p_pct
$$;

comment on function guard.in_rollout(bigint, integer) is
'Whether a call is among the first p_pct percent, by a hash of its id that never changes.';

grant execute on function guard.in_rollout(bigint, integer) to guard_operator; -- for guard.probe_rule, as below

create or replace function guard.mode_for(p_rule text, p_key bigint)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case
        when guard.in_rollout(p_key, r.rollout_pct) then r.mode
        when r.mode = 'enforce' then 'correct'
        when r.mode = 'correct' then 'observe'
        else 'off'
    end
    from guard.rules as r
    where r.rule = p_rule
$$;

comment on function guard.mode_for(text, bigint) is
'The mode of a rule for one call: the rule''s own inside the rollout, the rung below outside it.';

grant execute on function guard.mode_for(text, bigint) to guard_operator;

-- What a BEFORE ROW trigger does about a row that breaks a rule: enforce, correct, observe, or pass (let through and
-- not record). A row that was wrong before the write is not refused for it, and not recorded again on every update.
-- Null when the registry cannot be read: the fault is counted, the row goes through as it is, and only a CHECK
-- constraint may still refuse it.
create or replace function guard.write_mode(p_rule text, p_key bigint, p_standing boolean)
returns text
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_mode text;
    v_repairable boolean;
begin
    select guard.mode_for(p_rule, p_key), r.repairable into v_mode, v_repairable
    from guard.rules as r
    where r.rule = p_rule;
    if v_mode = 'enforce' and p_standing then
        v_mode := 'correct';
    end if;
    if v_mode = 'correct' and not v_repairable then
        v_mode := 'observe';
    end if;
    if v_mode = 'off' or (v_mode = 'observe' and p_standing) then
        v_mode := 'pass';
    end if;
    return v_mode;
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        perform guard.note_fault('write_mode', sqlstate, sqlerrm);
        return null;
end
$$;

comment on function guard.write_mode(text, bigint, boolean) is
'What to do about a row that breaks a rule as it is written: enforce, correct, observe or pass.';
