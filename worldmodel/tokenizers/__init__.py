"""Autoencoders: observations ↔ latents; tokenizers: observations ↔ grids of codes."""

from worldmodel.tokenizers.base import Autoencoder, Bound, Reconstruction, Tokenizer, require_codes
from worldmodel.tokenizers.hierarchy import VQVAE2
from worldmodel.tokenizers.variational import VAE
from worldmodel.tokenizers.vimco import VIMCO
from worldmodel.tokenizers.vqvae import VQVAE

__all__ = ["VAE", "VIMCO", "VQVAE", "VQVAE2", "Autoencoder", "Bound", "Reconstruction", "Tokenizer", "require_codes"]
