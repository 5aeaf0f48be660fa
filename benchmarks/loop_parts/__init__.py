"""The parts of the benchmark of the closed loop on simulated plants."""
