"""Modules that several folders of tests share. Programs in subprocesses import them too, as ``helpers.NAME``."""
