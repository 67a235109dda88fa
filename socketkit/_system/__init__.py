"""The operating system as socketkit uses it. Nothing here knows of servers, handlers or requests."""
