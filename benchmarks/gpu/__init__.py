"""All that a GPU has to settle, in one command: does it run, is it right, and how fast is it."""
