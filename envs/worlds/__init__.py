"""Worlds that answer: conversations whose replies nobody but the world writes."""
