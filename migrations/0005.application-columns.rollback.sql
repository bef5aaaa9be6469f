do $$
declare
    v_statement text;
begin
    for v_statement in
        select format('alter table %s %s', p.relation::regclass, string_agg(format('drop column %I', p.name), ', '))
        from guard.provenance as p
        where p.kind = 'column' and to_regclass(p.relation) is not null
        group by p.relation
    loop
        execute v_statement;
    end loop;
end
$$;

delete from guard.provenance where kind = 'column';
