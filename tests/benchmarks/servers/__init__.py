"""The programs that are measured. Each listens on a free port of the loopback interface, says which, and serves until killed."""
