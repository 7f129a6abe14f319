"""Explorers: what chooses the actions while data is collected."""
