"""Emulators of Entra and managed identity, for their SDKs."""
