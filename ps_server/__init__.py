"""The server: rows behind gRPC."""
