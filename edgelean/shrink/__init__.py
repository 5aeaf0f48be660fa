"""Shrinking: axes, scores, plans and cuts."""
