-- transactional: false
-- Detection looks at the calls of its window.
create index concurrently if not exists guard_calls_created_at
on public.calls (created_at);
