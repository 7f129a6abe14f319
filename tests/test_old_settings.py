"""Runs made before settings were renamed: their models are built from the old names, and their weights fit."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf

from worldmodel.runs.migrate import migrate
from worldmodel.runs.models import build_prior, build_second, build_tokenizer
from worldmodel.tokenizers import VQVAE, Tokenizer
from worldmodel.types import Spec

SPEC = Spec("x", (3, 16, 16), ("left", "right"), 15.0)
VECTOR = {"_target_": "worldmodel.quantizers.VectorQuantizer", "_partial_": True, "width": 4}
OLD: dict[str, Any] = {
    "tokenizer": {
        "_target_": "worldmodel.tokenizers.VQVAE",
        "widths": [4, 8],
        "blocks": 1,
        "codes": 16,
        "told": 3,
        "quantizer": {
            "_target_": "worldmodel.quantizers.ResidualQuantizer",
            "_partial_": True,
            "stages": 2,
            "quantizer": VECTOR,
        },
    },
    "prior": {
        "_target_": "worldmodel.priors.Prior",
        "context": 0,
        "outcomes": False,
        "trunk": {"_target_": "worldmodel.priors.ConditionTrunk", "_partial_": True, "width": 8},
        "head": {"_target_": "worldmodel.priors.PixelCNNHead", "_partial_": True, "width": 8, "layers": 2},
    },
}


def test_old_names_of_settings_build_the_same_models() -> None:
    torch.manual_seed(0)
    config = OmegaConf.create(migrate(OLD))
    tokenizer = build_tokenizer(config, SPEC).eval()
    assert isinstance(tokenizer, VQVAE) and tokenizer.condition_width == 3
    assert (tokenizer.num_codes, tokenizer.grid) == (16, (4, 4, 2))
    prior = build_prior(config, SPEC, tokenizer)
    assert {name for name in prior.state_dict() if name.startswith("trunk")} == {"trunk.embed.weight"}
    names = set(tokenizer.state_dict())
    assert {"condition.weight", "quantizer.parts.1.table", "project.weight", "encoder.down.0.weight"} <= names
    frames = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert tokenizer.decode(tokenizer.encode(frames), torch.tensor([0, 1])).shape == frames.shape


def test_a_second_tokenizer_and_levels_have_old_names_too() -> None:
    first = {**OLD["tokenizer"], "told": 0, "quantizer": VECTOR}
    second = {
        "_target_": "worldmodel.priors.scene.GridVQVAE",
        "codes": 8,
        "widths": [8],
        "context": 8,
        "quantizer": {
            "_target_": "worldmodel.quantizers.ProductQuantizer",
            "_partial_": True,
            "slots": 3,
            "quantizer": VECTOR,
        },
        "head": {"_target_": "worldmodel.priors.PixelCNNHead", "_partial_": True, "width": 8, "layers": 2},
    }
    config = OmegaConf.create(migrate({"tokenizer": first, "second": second}))
    built = build_second(config, build_tokenizer(config, SPEC))
    assert built is not None and (built.num_codes, built.grid) == (8, (3,))
    for kind, widths in (("tokenizers.VQVAE2", [[4], [8]]), ("tokenizers.SeparateLevels", [[4], [4, 8]])):
        node = {**first, "_target_": f"worldmodel.{kind}", "widths": widths}
        if kind == "tokenizers.VQVAE2":
            del node["told"]
        levels = build_tokenizer(OmegaConf.create(migrate({"tokenizer": node})), SPEC)
        assert isinstance(levels, Tokenizer) and levels.num_codes == 16 and len(levels.levels) == 2
