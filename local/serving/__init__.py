"""Serves the emulators: HTTP, certificates, and faults on request."""
