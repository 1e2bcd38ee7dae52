"""Who is who: the table, and the protocol that keeps it true."""
