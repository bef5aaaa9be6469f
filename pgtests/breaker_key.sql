-- Which circuit a booking belongs to is a setting.
begin;
select plan(5);

select is(guard.breaker_key(7, 3), 'appointment_booking:service:7', 'the service''s');
select is(guard.breaker_key(), 'appointment_booking:global', 'the global one where the service is not known');
select guard.set_setting('per_staff', 'true');
select is(guard.breaker_key(7, 3), 'appointment_booking:staff:3', 'the staff member''s');
select is(guard.breaker_key(7), 'appointment_booking:service:7', 'or the service''s where no member is known');
select guard.set_setting('per_service', 'false');
select is(guard.breaker_key(7), 'appointment_booking:global', 'or the global one');

select * from finish();
rollback;
