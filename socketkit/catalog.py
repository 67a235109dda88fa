"""Parts by name: the public face of `socketkit.composition.catalog`."""

from socketkit.composition.catalog import KINDS, Catalog, Offer, PartKind, Plugin

__all__ = ["KINDS", "Catalog", "Offer", "PartKind", "Plugin"]
