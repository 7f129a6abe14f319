"""Mapping of the class and setting names of earlier versions to the present names.

A run stores the settings that it was trained with, so every renamed class, function or setting needs a line here.
"""

from typing import Any

PACKAGES = {"envs": "worldmodel.envs", "agents": "worldmodel.agents"}  # that were top-level ones

TARGETS = {
    "worldmodel.agents.actor_critic.ActorCriticAgent": "worldmodel.agents.actor.ActorCriticAgent",
    "worldmodel.agents.sb3.learn": "worldmodel.agents.sb3_training.learn",
    "worldmodel.data.sources.TIMIT": "worldmodel.speech.sources.TIMIT",
    "worldmodel.data.sources.VCTK": "worldmodel.speech.sources.VCTK",
    "worldmodel.nn.causal": "worldmodel.speech.nn.causal",
    "worldmodel.nn.likelihoods": "worldmodel.likelihoods",
    "worldmodel.nn.sound": "worldmodel.speech.nn.mel",
    "worldmodel.nn.spectra": "worldmodel.speech.nn.spectra",
    "worldmodel.nn.spectral": "worldmodel.speech.nn.spectra",
    "worldmodel.nn.wavenet": "worldmodel.speech.nn.wavenet",
    "worldmodel.priors.PixelCNNHead": "worldmodel.heads.PixelCNNHead",
    "worldmodel.priors.PixelCNNLikelihood": "worldmodel.heads.PixelCNNLikelihood",
    "worldmodel.priors.TransformerHead": "worldmodel.heads.TransformerHead",
    "worldmodel.priors.hierarchy.HierarchyHead": "worldmodel.heads.HierarchyHead",
    "worldmodel.priors.memory": "worldmodel.priors.frame_transformer",
    "worldmodel.priors.pixels.PixelCNNLikelihood": "worldmodel.heads.PixelCNNLikelihood",
    "worldmodel.priors.scene": "worldmodel.tokenizers.scene",
    "worldmodel.speech.nn.spectral": "worldmodel.speech.nn.spectra",
    "worldmodel.tokenizers.SeparateLevels": "worldmodel.speech.separate.SeparateLevels",
    "worldmodel.training.augment.VariedSounds": "worldmodel.speech.augment.VariedSounds",
}
"""Renamed modules and classes, as they stand in ``_target_``."""

WITH_CODES = ("GridVQVAE", "GumbelQuantizer", "ProductQuantizer", "ResidualQuantizer", "SeparateLevels", "VIMCO",
              "VQVAE", "VQVAE2", "VectorQuantizer")  # fmt: skip
SETTINGS: dict[str, str] = {
    **{f"{name}.codes": "num_codes" for name in WITH_CODES},
    "MelEncoder.still": "subtract_mean",
    "MelSpectra.rounds": "iterations",
    "NoveltyExplorer.ways": "num_sequences",
    "PixelCNNLikelihood.levels": "num_values",
    "ResidualQuantizer.stages": "num_codebooks",
    "SeparateLevels.told": "condition_width",
    "VQVAE.told": "condition_width",
    "WaveNetLikelihood.forget": "history_dropout",
    "WaveNetLikelihood.levels": "sample_likelihood",
    **{
        f"{name}.{old}": new
        for name in ("StickyExplorer", "NoveltyExplorer", "ActorCriticAgent", "learn")
        for old, new in {
            "fidget": "random_action_probability",
            "hold": "max_repeat",
            "plain": "low_contrast",
            "spell": "random_action_run",
            "still": "min_frame_change",
        }.items()
    },
}
"""Renamed settings: ``<class of the node>.<old name>`` → new name."""

WEIGHTED = {stage: (stage,) for stage in ("tokenizer", "second", "prior")} | {"agent": ("agent", "learner", "network")}
"""Where the settings of a run have the model of a training stage."""


def present_target(name: str) -> str:
    """The present dotted name of a class or function that an earlier version called ``name``."""
    package, dot, rest = name.partition(".")
    if package in PACKAGES and dot:
        name = f"{PACKAGES[package]}.{rest}"
    for old, new in TARGETS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def migrate(settings: Any) -> Any:
    """Plain settings (dicts, lists and values) of any version → the same under the present names."""
    if isinstance(settings, list):
        return [migrate(item) for item in settings]
    if not isinstance(settings, dict):
        return settings
    target = present_target(str(settings.get("_target_")))
    kind = target.rpartition(".")[2]
    result = {SETTINGS.get(f"{kind}.{key}", key): migrate(value) for key, value in settings.items()}
    if isinstance(settings.get("_target_"), str):
        result["_target_"] = target
    package, colon, rest = str(result.get("id")).partition(":")
    if colon and package in PACKAGES:  # of an environment, such as envs:worldmodel/Vizdoom-v0
        result["id"] = f"{PACKAGES[package]}:{rest}"
    if isinstance(result.get("training"), dict):
        move_loss_weights(result)
    return result


def move_loss_weights(settings: dict[Any, Any]) -> None:
    """``training.<stage>.weights`` of earlier versions → ``loss_weights`` of the model of that stage, in place."""
    for stage, path in WEIGHTED.items():
        weights = (settings["training"].get(stage) or {}).pop("weights", None)
        node: Any = settings
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if weights and isinstance(node, dict):
            node.setdefault("loss_weights", weights)
