"""Parts that break one promise each, on purpose. They show that no check is empty.

Each module has `MUTANTS`: by the name of the check that has to find it, what makes the part, and words of the reason that its author reads. Other words may
follow the name, if a check has several mutants.
Each also has `SOUND`, the parts that the mutants start from, which keep every promise.
"""
