"""Stand-ins for Entra, managed identity, ACS, Table Storage and the Functions host.

Nothing here is deployed, and everything listens on loopback only. Its keys are worthless.
"""
