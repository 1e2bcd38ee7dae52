"""What Azure Communication Services has to do with."""
