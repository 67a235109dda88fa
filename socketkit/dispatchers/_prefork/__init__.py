"""The live parts of `Prefork`: the supervisor in the parent and the worker in each child."""
