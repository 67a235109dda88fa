"""How fast socketkit is, next to what else there is: ``python -m tests.benchmarks``, from the folder that holds `tests`.

`rows` is the table of what is measured and what it is to reach; `servers` holds the programs that are measured, `clients` and
`probes` those that measure; `report` writes docs/explanation/measurements.md. Nothing here is collected by pytest.
"""
