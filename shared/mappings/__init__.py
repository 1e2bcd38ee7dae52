"""Which ACS identity belongs to which person: the table, and the protocol that keeps it right."""
