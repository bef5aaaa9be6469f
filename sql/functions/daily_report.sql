-- provides: function guard.report_actions(jsonb)
-- provides: function guard.report_message(jsonb)
-- provides: function guard.daily_report(date)
--
-- The report of one day: put together from its parts, stored, and rolled up by company.
-- Raises ZG702 (the day has not begun), ZG704 (no day given).

-- What a person should do next, from what the report says, the most urgent first.
create or replace function guard.report_actions(p_report jsonb)
returns jsonb
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        jsonb_agg(jsonb_build_object('what', a.what, 'how', a.how) order by a.urgency, a.cases desc, a.what), '[]'
    )
    from (
        select
            1 as urgency, 0 as cases,
            format('The rule %s could not be asked: %s.', r.rule, r.error) as what,
            format('See the error with: table guard.%s', r.rule) as how
        from jsonb_to_recordset(p_report -> 'rules') as r (rule text, error text)
        where r.error is not null
        union all
        select 2, 0, format('The circuit %s is not closed.', k.key), format('guard breaker show %s', k.key)
        from jsonb_array_elements_text(p_report -> 'breakers' -> 'not_closed') as k (key)
        union all
        select
            case when bool_or(r.severity = 'critical') then 3 else 5 end, sum(r.standing),
            format(
                '%s that guard may repair: %s.',
                case sum(r.standing) when 1 then 'One standing defect' else sum(r.standing) || ' standing defects' end,
                string_agg(format('%s (%s)', r.rule, r.standing), ', ' order by r.standing desc, r.rule)
            ),
            case
                when bool_or(r.mode = any('{off,observe}'))
                then 'Raise each of them (guard rules set RULE --mode correct), then: guard reconcile'
                else 'guard reconcile'
            end
        from jsonb_to_recordset(p_report -> 'rules') as r (rule text, severity text, mode text, standing bigint)
        inner join guard.rules as u on r.rule = u.rule and u.repairable
        where
            r.severity <> 'info'
            -- what was queued for a person has been tried
            and r.standing > (
                select count(*) from guard.manual_review_queue as q where q.reason = r.rule and q.status <> 'resolved'
            )
        having count(*) > 0
        union all
        select
            case r.severity when 'critical' then 3 else 5 end, r.standing,
            format('%s of %s standing, for a person to decide.', r.standing, r.rule), u.runbook
        from jsonb_to_recordset(p_report -> 'rules') as r (rule text, severity text, standing bigint)
        inner join guard.rules as u on r.rule = u.rule and not u.repairable
        where r.standing > 0 and r.severity <> 'info'
        union all
        select
            4, q.open_items,
            format(
                '%s for a person, the oldest since %s.',
                case q.open_items when 1 then 'One review item waits' else q.open_items || ' review items wait' end,
                to_char(q.oldest_at at time zone (p_report ->> 'timezone'), 'YYYY-MM-DD HH24:MI')
            ),
            'guard review take'
        from jsonb_to_record(p_report -> 'queue') as q (open_items bigint, oldest_at timestamptz)
        where q.open_items > 0
        union all
        select
            6, 0,
            format(
                '%s was %s %s; the target is %s %s %s.',
                initcap(left(k.kpi, 1)) || replace(substr(k.kpi, 2), '_', ' '), round(k.value, 2), k.unit,
                case k.comparison when '>=' then 'at least' else 'at most' end, k.target, k.unit
            ),
            'guard kpis shows what it was measured on.'
        from jsonb_to_recordset(p_report -> 'kpis') as k (
            kpi text, value numeric, unit text, comparison text, target numeric, met boolean
        )
        where not k.met and k.kpi <> 'queue_size'
    ) as a
$$;

comment on function guard.report_actions(jsonb) is 'What a person should do next, from what a report says.';

-- The report as a message: totals, what each rule found and why that is wrong, what to do.
create or replace function guard.report_message(p_report jsonb)
returns text
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws(
        e'\n\n',
        format(
            e'Report of %s\nCalls: %s, appointments: %s\nInconsistencies: %s found, %s corrected, %s standing\n'
            'Review queue: %s open',
            p_report ->> 'date', t.calls, t.appointments, t.found, t.corrected, t.standing,
            p_report #>> '{queue,open_items}'
        ),
        (
            select
                e'Rules:\n'
                || string_agg(
                    case
                        when r.error is not null then format('- %s: %s', r.rule, r.error)
                        else format(
                            e'- %s, %s: %s found, %s corrected, %s standing\n  %s',
                            r.rule, r.severity, r.found, r.corrected, r.standing, u.description
                        )
                    end,
                    e'\n' order by r.place
                )
            from rows from (
                jsonb_to_recordset(p_report -> 'rules') as (
                    rule text, severity text, found bigint, corrected bigint, standing bigint, error text
                )
            ) with ordinality as r (rule, severity, found, corrected, standing, error, place)
            left join guard.rules as u on r.rule = u.rule
            where r.found > 0 or r.standing > 0 or r.error is not null
        ),
        coalesce(
            (
                select e'To do:\n' || string_agg(format(e'- %s\n  %s', i.what, i.how), e'\n' order by i.place)
                from rows from (
                    jsonb_to_recordset(p_report -> 'action_items') as (what text, how text)
                ) with ordinality as i (what, how, place)
            ),
            'To do: nothing'
        )
    )
    from jsonb_to_record(p_report -> 'totals') as t (
        calls bigint, appointments bigint, found bigint, corrected bigint, standing bigint
    )
$$;

comment on function guard.report_message(jsonb) is 'A report in the words of a message.';

-- Makes or refreshes the report of a day in settings.app_timezone. What was found on that day stays; what stands is as
-- it is now. The first report of yesterday, once it is over, is announced in the outbox. On a hot standby nothing is
-- made: the stored report is returned, or null.
-- Tables: daily_reports, daily_company_totals, daily_kpis, notifications. Locks: an advisory one, so that two reports of
-- one day do not meet.
create or replace function guard.daily_report(p_date date)
returns jsonb
language plpgsql
volatile
security definer -- writes guard's own tables, and counts the rows that policies hide
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_zone constant text := guard.setting('app_timezone');
    v_today constant date := (now() at time zone v_zone)::date;
    v_from constant timestamptz := p_date::timestamp at time zone v_zone;
    v_to constant timestamptz := (p_date + 1)::timestamp at time zone v_zone;
    v_report jsonb;
    v_totals jsonb;
    v_known boolean;
    v_kpi record;
begin
    if p_date is null or not isfinite(p_date) then
        raise exception using errcode = 'ZG704', message = 'a report is of a day', hint = 'Give a date, such as 2026-01-31.';
    end if;
    if p_date > v_today then
        raise exception using
            errcode = 'ZG702',
            message = format('%s has not begun: in %s it is %s', p_date, v_zone, v_today),
            hint = 'Give today or an earlier day.';
    end if;
    if pg_is_in_recovery() then
        return (select r.report from guard.daily_reports as r where r.report_date = p_date);
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.daily_report'), p_date - date '2000-01-01');
    -- moments are written into the report as they are read there
    perform set_config('timezone', v_zone, true);

    v_report := jsonb_build_object(
        'date', p_date,
        'timezone', v_zone,
        'from', v_from,
        'to', v_to,
        'complete', v_to <= now(),
        'generated_at', now(),
        'rules', (select jsonb_agg(to_jsonb(r)) from guard.report_rules(v_from, v_to) as r),
        'days', (select jsonb_agg(to_jsonb(d) order by d.day) from guard.report_days(p_date, 14) as d),
        'detection', (select to_jsonb(d) from guard.report_detection(v_from, v_to) as d),
        'validations', (select jsonb_agg(to_jsonb(v)) from guard.report_validations(v_from, v_to) as v),
        'breakers', (select to_jsonb(b) from guard.report_breakers(v_from, v_to) as b),
        'queue', (select to_jsonb(q) from guard.report_queue(v_to) as q),
        'kpis', (select jsonb_agg(to_jsonb(k)) from guard.kpis(v_from, v_to) as k),
        'legacy_standing', (select count(*) from guard.baseline as b where b.cleared_at is null),
        'queries', jsonb_build_object(
            'rules', format('select * from guard.report_rules(%L, %L)', v_from, v_to),
            'days', format('select * from guard.report_days(%L, 14)', p_date),
            'detection', format('select * from guard.report_detection(%L, %L)', v_from, v_to),
            'validations', format('select * from guard.report_validations(%L, %L)', v_from, v_to),
            'breakers', format('select * from guard.report_breakers(%L, %L)', v_from, v_to),
            'queue', format('select * from guard.report_queue(%L)', v_to),
            'kpis', format('select * from guard.kpis(%L, %L)', v_from, v_to),
            'legacy_standing', 'select count(*) from guard.baseline where cleared_at is null'
        )
    );

    -- sums of the parts above
    select jsonb_build_object(
        'calls', v_report #> '{days,-1,calls}',
        'appointments', v_report #> '{days,-1,appointments}',
        'found', sum(r.found),
        'inconsistency_rate_pct', round(100 * sum(r.found) / nullif((v_report #>> '{days,-1,calls}')::numeric, 0), 2),
        'corrected', sum(r.corrected),
        'recovered', sum(r.recovered),
        'recovery_rate_pct', round(100 * sum(r.recovered) / nullif(sum(r.found), 0), 2),
        'standing', sum(r.standing)
    )
    into v_totals
    from jsonb_to_recordset(v_report -> 'rules') as r (
        severity text, found numeric, corrected numeric, recovered numeric, standing numeric
    )
    where r.severity <> 'info';
    v_report := v_report || jsonb_build_object(
        'totals', v_totals,
        'trend', (
            select jsonb_build_object(
                'found_last_7_days', w.this_week,
                'found_7_days_before', w.last_week,
                'change_pct', round(100.0 * (w.this_week - w.last_week) / nullif(w.last_week, 0), 1)
            )
            from (
                select
                    sum(d.found) filter (where d.day > p_date - 7) as this_week,
                    sum(d.found) filter (where d.day <= p_date - 7) as last_week
                from jsonb_to_recordset(v_report -> 'days') as d (day date, found numeric)
            ) as w
        ),
        'top_issues', (
            select coalesce(jsonb_agg(to_jsonb(t) order by t.cases desc, t.rule), '[]')
            from (
                select
                    r.rule, u.severity, u.entity_type, u.description as cause, greatest(r.found, r.standing) as cases,
                    r.standing, u.runbook as action, u.repair, r.examples
                from jsonb_to_recordset(v_report -> 'rules') as r (
                    rule text, found bigint, standing bigint, examples jsonb
                )
                inner join guard.rules as u on r.rule = u.rule
                where u.severity <> 'info' and greatest(r.found, r.standing) > 0
                order by cases desc, r.rule
                limit 5
            ) as t
        )
    );
    v_report := v_report || jsonb_build_object('action_items', guard.report_actions(v_report));

    select (r.report ->> 'complete')::boolean into v_known from guard.daily_reports as r where r.report_date = p_date;
    insert into guard.daily_reports as r (report_date, report)
    values (p_date, v_report)
    on conflict (report_date) do update set report = excluded.report, updated_at = now();

    delete from guard.daily_company_totals as t where t.report_date = p_date;
    insert into guard.daily_company_totals (
        report_date, company_id, calls, consistent_calls, appointments, found, corrected
    )
    select p_date, c.company_id, c.calls, c.consistent_calls, c.appointments, c.found, c.corrected
    from guard.report_companies(v_from, v_to) as c;

    delete from guard.daily_kpis as k where k.report_date = p_date;
    insert into guard.daily_kpis (report_date, kpi, target, value, unit, met, rows_behind)
    select p_date, k.kpi, k.target, k.value, k.unit, k.met, k.rows_behind
    from jsonb_to_recordset(v_report -> 'kpis') as k (
        kpi text, target numeric, value numeric, unit text, met boolean, rows_behind bigint
    );
    for v_kpi in select d.* from guard.kpi_definitions(v_from, v_to) as d loop
        execute format(
            'insert into guard.daily_kpis (report_date, company_id, kpi, target, value, unit, met, rows_behind)'
            ' select $1, v.company_id, $2, $3, v.value, $4, v.value %s $3, v.rows_behind'
            ' from ('
            '     select r.company_id, trim_scale(round((%s)::numeric, 6)) as value, count(*) as rows_behind'
            '     from (%s) as r where r.company_id is not null group by r.company_id'
            ' ) as v',
            v_kpi.comparison, v_kpi.measure, v_kpi.rows_query
        )
        using p_date, v_kpi.kpi, v_kpi.target, v_kpi.unit;
    end loop;

    if p_date = v_today - 1 and v_known is not true then
        perform guard.notify('info', 'daily_report', null, null, null, guard.report_message(v_report));
    end if;
    return v_report;
end
$$;

comment on function guard.daily_report(date) is
'Make and store the report of a day in settings.app_timezone; again: bring it up to date.';

grant execute on function guard.daily_report(date) to guard_operator;
