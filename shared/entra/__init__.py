"""Microsoft Entra: its access tokens, and the keys that sign them."""
