"""An emulator of the ACS Identity service, for its SDKs."""
