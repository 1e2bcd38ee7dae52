"""The broker: an Entra access token in, an ACS access token for the same person out."""
