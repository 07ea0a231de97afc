"""What a run requires of its configuration, refused before data and models are read."""

from __future__ import annotations

from pathlib import Path

from marginkit.assembly import build_loss
from marginkit.config import RunConfig
from marginkit.control import twin_of
from marginkit.embedding_run import check_head
from marginkit.errors import BadInput
from marginkit.neighbours import check_population
from marginkit.reward_scores import check_reward_model


def check_model(config: RunConfig) -> None:
    """Refuse what is known to go wrong, before data and model are read.

    Raises:
        BadInput: no model, bfloat16 weights with a learning rate that would round away, or no reward model where the
            recipe needs its scores.
    """
    model, train = config.model, config.train
    if model.kind == "embedding":
        check_head(config)
    if model.path is None:
        raise BadInput("model.path is missing: a folder, a hub name, or model.path=fresh for a small random model")
    if (Path(model.path) / "config.yaml").is_file():
        raise BadInput(f"model.path={model.path}: is a run; its model is {Path(model.path) / 'model'}")
    if config.out is not None and Path(config.out).exists() and not Path(config.out).is_dir():
        raise BadInput(f"out={config.out}: is a file; name a folder")
    half = model.dtype in ("bfloat16", "float16") and model.lora is None
    if half and train.learning_rate < 1e-5 and not train.force:
        raise BadInput(
            f"model.dtype={model.dtype} with train.learning_rate={train.learning_rate:g}: most updates would round "
            "away; keep float32 weights (autocast still computes in bfloat16), use model.lora, or set train.force=true"
        )
    loss = build_loss(config.spec, config.options())
    needs, looks_around, reads_rewards = loss.needs, loss, config
    if train.control is not None:  # a key may be there for the control alone
        twin = twin_of(config, train.control, Path("control"))
        other = build_loss(twin.spec, twin.options())
        needs |= other.needs
        reads_rewards = twin if "rm_head" in other.needs else config
        looks_around = other if other.coupled else loss
    if model.reference is not None and "ref_logp" not in needs:
        raise BadInput(f"model.reference={model.reference}: recipe {config.recipe} has no reference; leave it out")
    check_population(looks_around, train.population, train.population_window)
    check_reward_model(reads_rewards, needs)
