"""What the emulators are served with."""
