"""What a laptop runs in place of Azure: Entra, managed identity, ACS, tables, a functions host.

Nothing here is deployed, and everything listens on loopback only. Its keys are worthless.
"""
