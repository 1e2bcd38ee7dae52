"""`python -m infra.mappings`: imports, exports and restores identity mappings."""
