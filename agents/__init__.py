"""Agents: explorers, which collect; planners and an actor-critic, which use a world model; their evaluation."""
