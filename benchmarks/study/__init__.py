"""The study: the paper's claims at a small scale, as jobs that leave rows, and the tables of these rows."""
