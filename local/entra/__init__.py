"""Entra and its managed identities, as the SDKs see them."""
