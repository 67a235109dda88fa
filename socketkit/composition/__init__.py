"""Turns text, mappings and TOML files into recipes, and finds the plugins that supply named parts."""
