"""The recipes that come with edgelean: real data, no download."""
