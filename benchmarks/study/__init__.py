"""The study: the paper's claims at a small scale. Jobs leave rows, and the tables are made of the rows."""
