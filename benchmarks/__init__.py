"""Measurements: run by hand or by `make`, recorded in `results/`, never part of the tests."""
