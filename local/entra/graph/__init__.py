"""The local Microsoft Graph, as far as the directory of a token broker is set up with it."""
