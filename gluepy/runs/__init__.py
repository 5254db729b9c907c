"""What is kept of runs: the record, the event log, the lock."""
