"""Azure Communication Services: the operations on its identities."""
