"""The artifact on disk: written atomically, read as untrusted input."""
