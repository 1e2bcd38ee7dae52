"""A functions host for those who have no Core Tools."""
