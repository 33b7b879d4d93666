"""A server's checkpoints: its part in each, and server 0's coordination."""
