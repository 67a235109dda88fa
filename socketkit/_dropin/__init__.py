"""`socketkit run`: the classic module in place of the standard library's, for a program and the Python processes it starts."""
