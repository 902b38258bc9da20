"""The backends that ship with expkit, found through the same entry points as anybody's."""
