"""Layers: steps between accept and handler on stream connections."""
