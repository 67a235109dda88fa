"""Compares the speed of socketkit with alternatives: ``python -m tests.benchmarks``, from the folder that contains `tests`.

`rows` is the table of measurements and goals; `servers` contains the measured programs, `clients` and `probes` the programs that
measure them; `report` writes docs/explanation/measurements.md. pytest collects nothing here.
"""
