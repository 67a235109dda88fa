"""The measured programs. Each listens on a free port of the loopback interface, prints the port, and serves until killed."""
