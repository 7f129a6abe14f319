"""Scores of each level of :class:`SeparateLevels`: held-out utterances, decoded from the codes of one level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worldmodel.speech.evaluation.utterances import Utterance
from worldmodel.speech.mulaw import to_wave
from worldmodel.speech.scores.distances import wave_scores
from worldmodel.speech.separate import SeparateLevels
from worldmodel.speech.voice import VoiceModel


@torch.no_grad()
def level_figures(
    world: VoiceModel, tokenizer: SeparateLevels, chosen: Sequence[Utterance], seed: int
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Figures of each level, coarsest first, and the first utterance as decoded from each level."""
    generator = torch.Generator(world.device).manual_seed(seed)
    real = [each.wave for each in chosen]
    figures, shown = {}, [(f"{chosen[0].key}, real", real[0])]
    for place, (name, grid) in enumerate(zip(tokenizer.names, tokenizer.levels, strict=True)):
        decoded = []
        for each in chosen:
            speaker = torch.tensor([each.speaker], device=world.device)
            codes = each.codes.flatten(0, 1)[None].to(world.device)
            drawn = tokenizer.level(place).draw(tokenizer.part(codes, place), speaker, generator)
            decoded.append(to_wave(drawn.flatten().cpu().numpy()))
        figures[name] = {
            "bits_a_second": math.prod(grid) * world.spec.rate * math.log2(tokenizer.num_codes),
            **wave_scores(real, decoded, seed),
        }
        shown.append((f"{chosen[0].key}, decoded from {name} only", decoded[0]))
    return figures, shown
