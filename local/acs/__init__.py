"""The ACS Identity service, as its SDKs see it."""
