"""How good is a world model: pictures, codes, likelihood, open-loop dreams, actions obeyed, rewards and ends foretold."""
