-- Phone numbers are masked however they are written; times, uuids, small ids and figures stay readable.
begin;
select plan(5);

create temporary table numbers (written text);
insert into numbers values
('+4915112345678'), ('+49 151 1234 5678'), ('+49 (0)151/1234-5678'), ('0049 151 12345678'), ('(030) 123 45 67'),
('030 1234567'), ('030/123 45-67'), ('0171-1234567'), ('01511.234.5678'), ('4915112345678'), ('+1 (555) 234-5678'),
('555-234-5678'), ('(555) 234 5678'), ('123456789'), ('tel:+4915112345678'), ('call_0171123456778'),
('2026-01-02 +4915112345678'), (e'+49 151\n12345678');
select is_empty(
    $$select n.written, guard.mask_phones(n.written) from numbers as n
    where guard.mask_phones(n.written) !~ ('[*]{3}' || right(n.written, 2) || '$')
        or guard.mask_phones(n.written) ~ '[^-\d](?:\d[^\d-]{0,3}){4}'$$,
    'a phone number keeps its last two digits, and no others'
);
select is(
    guard.mask_phones('Caller +49 151 12345678 (office: 030 1234567) asked twice.'),
    'Caller ***78 (office: ***67) asked twice.', 'the words around it stay'
);

create temporary table others (written text);
insert into others values
('2026-01-02'), ('2026-01-02 03:04:05.123456+00'), ('2026-01-02T03:04:05Z'), ('02.01.2026 03:04'), ('call 20301234'),
('bk_00012345'), ('call 12345678, appointment 1234567, company 7'), ('00000000-0000-0000-0000-000000000001'),
('550e8400-e29b-41d4-a716-446655440000'), ('99.50 % of 10000 calls, 0.123456789012 s'), ('10:00 to 11:30'), ('');
select is_empty(
    'select written, guard.mask_phones(written) from others where guard.mask_phones(written) is distinct from written',
    'what is no phone number is left alone'
);
select is(guard.mask_phones(null), null, 'null is null');
select lives_ok($$select guard.mask_phones(repeat('0', 100000) || repeat(' 1', 100000))$$, 'a megabyte of digits');

select * from finish();
rollback;
