"""A room for each kind of problem: its data and loss, how a model is built for it, and its recipes.

Importing a room registers them. To add one, put a folder beside these and import it in `apical.recipes`.
"""
