"""Wrappers around the operating system. Nothing here knows about servers, handlers or requests."""
