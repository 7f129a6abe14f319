"""How good is a world model: pictures, codes, likelihood, open-loop dreams, obedience to actions, rewards and ends."""
