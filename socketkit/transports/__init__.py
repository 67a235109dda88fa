"""Where requests come from: one module per family of sockets."""
