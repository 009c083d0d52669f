"""Measurements of apical; each says in its docstring how it is run from the repository's root."""
