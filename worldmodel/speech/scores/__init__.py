"""How good is speech: whose voice it is, what is said, how it sounds and what its codes hold.

Functions of waveforms, labels and codes; nothing here knows of a tokenizer. The classifiers are trained on real speech
alone and are small, so that no model need be downloaded.
"""
