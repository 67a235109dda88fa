"""`socketkit run`: replaces the standard library's `socketserver` for a program and the Python processes it starts."""
