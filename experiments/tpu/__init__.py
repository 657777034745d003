"""Compilation for TPU topologies without TPUs, and the cost of the compiled programs."""
