"""The parts of the benchmark of exported files."""
