"""The client: SDK, job file, local runner, command line."""
