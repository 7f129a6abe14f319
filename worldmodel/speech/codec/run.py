"""The codec of a run, and the entropy models that its bitstreams may be written by."""

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
"""In a run's folder: the counts of its training codes, made when they are first asked for, of the codec of that
fingerprint: a tokenizer that was trained anew has others."""


def load_codec(run: Path, device: str = "auto") -> Codec:
    """The codec of a run. Raises :class:`ConfigError` for one whose tokenizer is none, :class:`RunError` as ever."""
    tokenizer, spec = load_tokenizer(run, resolve_device(device)), load_spec(run)
    if not isinstance(tokenizer, VQVAE) or tokenizer.condition_width or not tokenizer.joined:
        raise ConfigError(
            f"the run {run.name} is no codec: a codec decodes sound by its codes alone; train one: experiment=codec"
        )
    return Codec(tokenizer, round(spec.rate * spec.frame_shape[1]))


def counts_of(run: Path, codec: Codec, streams: Callable[[], list[np.ndarray]]) -> CountModel:
    """The counts of a run's training codes: from its folder, or else of ``streams()``, each (n, Q), and kept there.

    Raises :class:`DataError` without any codes, or for a damaged file.
    """
    file = run / COUNTS.format(codec.fingerprint.hex()[:8])
    if file.is_file():
        found = CountModel.load(file)
        if (found.num_codes, found.num_codebooks) == (codec.num_codes, codec.num_codebooks):
            return found
    made = CountModel(streams(), codec.num_codes)
    made.save(file)
    return made


def prior_of(run: Path, codec: Codec) -> PriorModel | None:
    """The prior of a run where it has one that goes place by place."""
    if not check_trained(run, PRIOR):
        return None
    prior = load_prior(run, codec.tokenizer)
    try:
        return PriorModel(prior) if isinstance(prior, Prior) else None
    except ConfigError:
        return None


def training_codes(run: Path, codec: Codec) -> list[np.ndarray]:
    """The codes of the training utterances of a run's own data, each (n, Q); they are cached as ``train`` caches them.

    Raises :class:`DataError` when the data are not there.
    """
    store = EpisodeStore.open(str(load_config(run).data))
    tokenizer = codec.tokenizer
    codes = encode_store(store, tokenizer, run / CODES, next(tokenizer.parameters()).device)
    return [np.asarray(codes.episode(int(e))).reshape(-1, codec.num_codebooks) for e in store.split("train")]


def models_of(run: Path, codec: Codec, wanted: str = "auto") -> dict[str, CodeModel | None]:
    """By name, the entropy models that ``--entropy`` allows; None is that of fixed width.

    Raises :class:`DataError` or :class:`ConfigError` where the one that was asked for cannot be had.
    """
    found: dict[str, CodeModel | None] = {"none": None} if wanted in ("auto", "none") else {}
    if wanted in ("auto", "counts"):
        try:
            found["counts"] = counts_of(run, codec, lambda: training_codes(run, codec))
        except DataError as error:
            if wanted == "counts":
                raise
            print(f"note      no entropy model of counts: {error}")
    if wanted in ("auto", "prior"):
        prior = prior_of(run, codec)
        if prior is None and wanted == "prior":
            raise ConfigError(f"the run {run.name} has no prior that goes place by place; train one with prior=codec")
        if prior is not None:
            found["prior"] = prior
    return found


def model_named(run: Path, codec: Codec, name: bytes) -> CodeModel | None:
    """The entropy model of a run that a bitstream was written by. Raises :class:`DataError` when the run has it not."""
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
        f"the bitstream is entropy-coded by the model {name.hex()}, which the run {run.name} does not have: it is of "
        f"another prior, or {COUNTS} is gone and so are the data"
    )
