drop table guard.circuit_breaker_metrics;
drop table guard.circuit_breaker_events;
drop table guard.circuit_breaker_states;
