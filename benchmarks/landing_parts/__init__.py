"""Parts of the benchmark of landings: what is trained, one run, and the table."""
