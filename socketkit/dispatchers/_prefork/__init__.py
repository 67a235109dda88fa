"""The two live sides of `Prefork`: the supervisor in the parent, and the worker in each child."""
