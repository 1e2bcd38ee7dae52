"""A functions host for machines without Core Tools."""
