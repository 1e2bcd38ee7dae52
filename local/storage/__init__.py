"""Table Storage: Azurite, and a proxy that fails on command."""
