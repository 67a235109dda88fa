"""Where and when handlers run: one module for each strategy."""
