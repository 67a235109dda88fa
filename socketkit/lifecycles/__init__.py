"""How serving starts, stops and drains: one module for each way."""
