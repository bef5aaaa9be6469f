drop table guard.faults;
drop table guard.pending_checks;
drop table guard.data_consistency_alerts;
drop sequence guard.data_consistency_alerts_id_seq;
drop table guard.rules;
