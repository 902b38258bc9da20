"""The backends that ship with expkit, found through entry points as any other package's are."""
