"""Jobs on a cluster as a person at a terminal deals with them: submit, watch, logs, report, suspend, resume, retry, explain."""
