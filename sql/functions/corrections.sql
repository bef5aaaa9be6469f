-- provides: function guard.mark(jsonb, text, text, text, jsonb, jsonb)
-- provides: function guard.record_corrections(text, jsonb)
--
-- A BEFORE ROW trigger must not write to other tables: it marks its own row, and the AFTER STATEMENT trigger turns the
-- marks of all rows into alerts with one INSERT. A mark is {"rule", "mode", "column", "before", "after"}; a row that
-- was let through unrepaired carries a mark without a column. A CHECK constraint of guard's accepts a marked row: so a
-- rule can be lowered at once, without touching the constraint.

create or replace function guard.mark(
    p_marks jsonb,
    p_rule text,
    p_mode text,
    p_column text = null,
    p_before jsonb = null,
    p_after jsonb = null
)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_mode is null then p_marks
        else coalesce(p_marks, '[]') || pg_catalog.jsonb_build_array(
            case
                when p_column is null then pg_catalog.jsonb_build_object('rule', p_rule, 'mode', p_mode)
                else pg_catalog.jsonb_build_object(
                    'rule', p_rule, 'mode', p_mode, 'column', p_column, 'before', p_before, 'after', p_after
                )
            end
        )
    end
$$;

comment on function guard.mark(jsonb, text, text, text, jsonb, jsonb) is 'Add a mark to a row''s guard_corrections.';

-- p_rows: [{"id", "company_id", "marks"}]. One alert per row and rule; what was only recorded is looked at again.
-- Fails the write if a correction cannot be recorded, since its before-value would be lost; a fault while only
-- observing is counted and the write goes on.
-- Locks: ROW EXCLUSIVE on the alerts.
create or replace function guard.record_corrections(p_entity_type text, p_rows jsonb)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    -- the rule that guard.repair repairs, or undo: what is left as it is then, is no news
    v_repair constant text := nullif(current_setting('guard.repair', true), '');
begin
    insert into guard.data_consistency_alerts (
        alert_type, severity, entity_type, entity_id, company_id, description, metadata, auto_corrected, corrected_at
    )
    select
        m.rule,
        min(r.severity),
        p_entity_type,
        w.id,
        w.company_id,
        min(r.description),
        jsonb_strip_nulls(jsonb_build_object(
            'mode', m.mode,
            'by', case when v_repair <> 'undo' then 'repair' else v_repair end,
            'follows', case
                when m.rule = 'inconsistent_link_status' and v_repair <> 'undo' then nullif(v_repair, m.rule)
            end,
            'changes', jsonb_agg(jsonb_build_object('column', m."column", 'before', m.before, 'after', m.after))
                filter (where m."column" is not null)
        )),
        m.mode = 'correct',
        case when m.mode = 'correct' then now() end
    from jsonb_to_recordset(p_rows) as w (id bigint, company_id bigint, marks jsonb)
    cross join lateral jsonb_to_recordset(w.marks) as m (rule text, mode text, "column" text, before jsonb, after jsonb)
    inner join guard.rules as r on m.rule = r.rule
    where m.mode = 'correct' or (m.mode <> 'pass' and v_repair is null)
    group by w.id, w.company_id, m.rule, m.mode;
    if v_repair is null then
        perform guard.note_suspects(p_entity_type, array(
            select w.id
            from jsonb_to_recordset(p_rows) as w (id bigint, marks jsonb)
            where w.marks @? '$[*] ? (@.mode == "observe")'
        ));
    end if;
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        if p_rows @? '$[*].marks[*] ? (@.mode == "correct")' then
            raise;
        end if;
        perform guard.note_fault('record_corrections', sqlstate, sqlerrm);
end
$$;

comment on function guard.record_corrections(text, jsonb) is 'Turn the marks of a statement''s rows into alerts.';
