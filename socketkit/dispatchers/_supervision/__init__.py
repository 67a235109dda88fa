"""The live parts of `Prefork` and `Interpreters`: a supervisor, and its workers."""
