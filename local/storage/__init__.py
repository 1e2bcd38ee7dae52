"""Table Storage: Azurite, and a proxy that fails on request."""
