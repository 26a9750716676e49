"""The REST interface, one module a noun; all of it under /v1."""
