"""How serving starts, stops and drains: one module per lifecycle."""
