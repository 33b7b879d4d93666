"""Flights: a factorization machine on real flights, trained through parameter servers (docs/flights.md)."""
