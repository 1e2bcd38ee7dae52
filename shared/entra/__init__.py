"""What Entra has to do with: access tokens, and the keys that sign them."""
