"""The codec of a run and its entropy models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldmodel.data.codes import encode_store
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.priors import Prior
from worldmodel.runs.folder import CODES, PRIOR, load_config, load_spec
from worldmodel.runs.load import check_trained, load_prior, load_tokenizer, resolve_device
from worldmodel.speech.codec.bitstream import NO_MODEL
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CodeModel, CountModel
from worldmodel.speech.codec.entropy_prior import PriorModel
from worldmodel.tokenizers import VQVAE

COUNTS = "entropy-{}.safetensors"
"""File of the counts of the training codes in a run's folder, created on first use; it is named by the fingerprint of
the codec, which changes with the tokenizer."""


def load_codec(run: Path, device: str = "auto") -> Codec:
    """The codec of a run. Raises :class:`ConfigError` when its tokenizer is no codec, or :class:`RunError`."""
    tokenizer, spec = load_tokenizer(run, resolve_device(device)), load_spec(run)
    if not isinstance(tokenizer, VQVAE) or tokenizer.condition_width or not tokenizer.joined:
        raise ConfigError(
            f"the run {run.name} is no codec: a codec decodes sound without a speaker; train one with experiment=codec"
        )
    return Codec(tokenizer, round(spec.rate * spec.frame_shape[1]))


def counts_of(run: Path, codec: Codec, streams: Callable[[], list[np.ndarray]]) -> CountModel:
    """The counts of a run's training codes from its folder, or computed from ``streams()``, each (n, Q), and saved.

    Raises :class:`DataError` without any codes, or for a damaged file.
    """
    file = run / COUNTS.format(codec.fingerprint.hex()[:8])
    if file.is_file():
        model = CountModel.load(file)
        if (model.num_codes, model.num_codebooks) == (codec.num_codes, codec.num_codebooks):
            return model
    model = CountModel(streams(), codec.num_codes)
    model.save(file)
    return model


def prior_of(run: Path, codec: Codec) -> PriorModel | None:
    """The entropy model of a run's prior; None without a suitable prior."""
    if not check_trained(run, PRIOR):
        return None
    prior = load_prior(run, codec.tokenizer)
    try:
        return PriorModel(prior) if isinstance(prior, Prior) else None
    except ConfigError:
        return None


def training_codes(run: Path, codec: Codec) -> list[np.ndarray]:
    """The codes of the training utterances of a run, each (n, Q), from the cache of ``train``.

    Raises :class:`DataError` when the data are missing.
    """
    store = EpisodeStore.open(str(load_config(run).data))
    tokenizer = codec.tokenizer
    codes = encode_store(store, tokenizer, run / CODES, next(tokenizer.parameters()).device)
    return [np.asarray(codes.episode(int(e))).reshape(-1, codec.num_codebooks) for e in store.split("train")]


def models_of(run: Path, codec: Codec, wanted: str = "auto") -> dict[str, CodeModel | None]:
    """The entropy models that ``--entropy`` selects by name; None stands for codes of fixed width.

    Raises :class:`DataError` or :class:`ConfigError` when the selected one is not available.
    """
    models: dict[str, CodeModel | None] = {"none": None} if wanted in ("auto", "none") else {}
    if wanted in ("auto", "counts"):
        try:
            models["counts"] = counts_of(run, codec, lambda: training_codes(run, codec))
        except DataError as error:
            if wanted == "counts":
                raise
            print(f"note      no entropy model of counts: {error}")
    if wanted in ("auto", "prior"):
        prior = prior_of(run, codec)
        if prior is None and wanted == "prior":
            raise ConfigError(f"the run {run.name} has no prior that orders codes by position; train with prior=codec")
        if prior is not None:
            models["prior"] = prior
    return models


def model_named(run: Path, codec: Codec, name: bytes) -> CodeModel | None:
    """The entropy model of a run with a fingerprint. Raises :class:`DataError` when the run does not have it."""
    if name == NO_MODEL:
        return None
    for wanted in ("counts", "prior"):
        try:
            model = models_of(run, codec, wanted)[wanted]
        except (ConfigError, DataError):
            continue
        if model is not None and model.fingerprint() == name:
            return model
    raise DataError(
        f"the bitstream is entropy-coded by the model {name.hex()}, which the run {run.name} does not have: its "
        f"prior was trained again, or {COUNTS} and the data were deleted"
    )
