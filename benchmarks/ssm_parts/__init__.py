"""The parts of the benchmarks of in-training truncation."""
