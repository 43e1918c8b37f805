"""An index in an object store: pulled into a local folder, pushed from one, never opened where it lies."""
