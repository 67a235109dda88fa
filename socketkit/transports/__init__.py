"""Where requests come from: one module for each family of sockets."""
