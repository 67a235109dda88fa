"""Where and when handlers run: one module per strategy."""
