"""Parts of the benchmark of levers: images, network, one run, and the table."""
