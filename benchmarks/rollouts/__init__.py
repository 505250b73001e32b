"""Episodes: one simulator a process, one policy for all of them (runner), one suite a file."""
