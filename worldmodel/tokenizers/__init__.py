"""Tokenizers: observations ↔ grids of codes."""

from worldmodel.tokenizers.base import Reconstruction, Tokenizer
from worldmodel.tokenizers.vqvae import VQVAE

__all__ = ["Reconstruction", "Tokenizer", "VQVAE"]
