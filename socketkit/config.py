"""Text, mappings and TOML files to recipes: the public face of `socketkit.composition.config`."""

from socketkit.composition.config import Composition, composition, dispatcher, handler, lifecycle, limits, read, transport

__all__ = ["Composition", "composition", "dispatcher", "handler", "lifecycle", "limits", "read", "transport"]
