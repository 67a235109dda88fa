"""From text, mappings and TOML files to recipes, and from names to the plugins that supply them."""
