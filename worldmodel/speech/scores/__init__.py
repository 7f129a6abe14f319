"""Scores of speech: speaker, phones, quality of sound and content of codes.

They are functions of waves, labels and codes, independent of tokenizers. The classifiers are small and trained on real
speech only, so that no model is downloaded.
"""
