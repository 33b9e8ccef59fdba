"""Image files to arrays and back: bytes in, RGB arrays out. No storage, no torch."""
