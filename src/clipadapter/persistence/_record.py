"""Writing into the folder of a saved model what it was measured to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipadapter.errors import ArtifactError
from clipadapter.persistence._card import MARK, model_card
from clipadapter.persistence._evaluation import KEY, evaluated
from clipadapter.persistence._files import CARD, CONFIG, ArtifactConfig, config_bytes, read_config, write_synced
from clipadapter.persistence._folder import alone, staged

MAX_CARD_BYTES = 16 << 20


def record_evaluation(folder: str | Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Keep the figures of an evaluation in a saved model, and renew its card.

    What makes quick answers without torch goes by the hash of ``config.json``, and is made again at the next use. A
    card that a person has written is left as it is.

    Args:
        folder: a saved model.
        metrics: what ``to_dict()`` of `evaluate_model` or `evaluate_multilabel_model` gives, or the content of
            ``metrics.json``.

    Returns:
        The files that were written.

    Raises:
        ArtifactError: if there is no sound model, or it can't be written.
        InputError: if these are no figures, or figures of another model.
    """
    read_config(folder)
    with alone(folder):  # else a model that is saved meanwhile would get the config of the one before
        config = read_config(folder)
        found = evaluated(metrics, config)
        provenance = {**config.provenance, KEY: found.model_dump(exclude_none=True)}
        renewed = config.model_copy(update={"provenance": provenance})
        card = card_of(folder, renewed)
        with staged(folder) as staging:
            if card is not None:
                write_synced(staging.path / CARD, card.encode())
            write_synced(staging.path / CONFIG, config_bytes(renewed))
    return [Path(folder) / name for name in ([] if card is None else [CARD]) + [CONFIG]]


def card_of(folder: str | Path, config: ArtifactConfig, repo: str = "") -> str | None:
    """The card made anew; None if a person has written the one that is there, which begins by taking out the last line.

    Args:
        folder: a saved model.
        config: what the card is made of.
        repo: name on the hub, if it goes there.

    Raises:
        ArtifactError: if the card that is there can't be read.
    """
    path = Path(folder) / CARD
    try:
        if path.is_file() and path.stat().st_size > MAX_CARD_BYTES:
            raise ArtifactError(f"{path} is larger than {MAX_CARD_BYTES >> 20} MiB: it is no card")
        own = path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ArtifactError(f"can't read {path}: {error.strerror or error}") from error
    return None if own else model_card(config, repo)
