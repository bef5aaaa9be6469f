do $$
begin
    if exists (select from guard.provenance as p where p.kind = 'extension' and p.relation = 'btree_gist') then
        drop extension btree_gist;
    end if;
end
$$;

delete from guard.provenance where kind = 'extension';
