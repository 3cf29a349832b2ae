"""Whether the files of a model, its VQ model and its head go with each other. None of them needs its tensors."""

from __future__ import annotations

from .checkpoint import Checkpoint


def check_vq(vq: Checkpoint, model: Checkpoint) -> None:
    """Raise ValueError if a VQ model does not go with a model."""
    if vq.config.num_codes != model.config.num_codes:
        raise ValueError(
            f"{vq.name} has {vq.config.num_codes} codes, and {model.name} makes "
            f"{model.config.num_codes}. Give the VQ model that it was trained with (--vq; vq_name in Load MIGM)."
        )


def check_head(head: Checkpoint, model: Checkpoint, *, is_start: bool = False) -> str | None:
    """Check that `head` belongs to `model`.

    Args:
        is_start: True: a training starts from it, so it may be of a model of the same sizes with other weights.

    Returns:
        What could not be verified, as a sentence; None if everything was.

    Raises:
        ValueError: it is a head for another architecture, another width or other weights, or its rotary base, norms or
            heads are not those of the model.
    """
    problem = None
    expected = head.metadata.model_fingerprint
    if head.layout != model.architecture.head:
        problem = f"is a {head.layout.title}, which does not go with a {model.layout.title}"
    elif head.config.model_width != model.config.width:
        problem = f"is for a width of {head.config.model_width}, not {model.config.width}"
    elif expected and expected != model.fingerprint and not is_start:
        problem = f"was trained for the model {expected}, not {model.fingerprint}"
    elif (field := _differing(head, model)) is not None:
        mine, its = (getattr(item.config, field) for item in (head, model))
        said = "does not state and was read with" if field in head.assumed else "states"
        problem = f"{said} {field} = {mine}, not {its}"
    if problem is not None:
        raise ValueError(
            f"{head.name} {problem} as in {model.name}. Pick the head that was trained for this "
            "model."
        )
    if expected:
        return None
    return (
        f"{head.name} does not say which model it was trained for. Its width {model.config.width} "
        f"fits {model.name}; nothing else could be verified."
    )


def _differing(head: Checkpoint, model: Checkpoint) -> str | None:
    """Return the first field that a head must have as its model has it, and has not.

    A head that was trained here has a number of heads of its own.
    """
    is_ours = bool(head.metadata.model_fingerprint)
    for name in head.layout.from_model:
        mine, its = (getattr(item.config, name) for item in (head, model))
        if mine != its and not (is_ours and name == "num_heads"):
            return name
    return None
