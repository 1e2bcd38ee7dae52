"""`python -m infra.entra`: sets up Entra for the broker, and finds what is wrong with it."""
