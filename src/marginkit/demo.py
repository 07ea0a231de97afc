from dataclasses import dataclass
import numpy as np, torch
from marginkit.world import true_utility


@dataclass(frozen=True)
class Settings:
    learning_rate: float
    epochs: int
    prompts_per_step: int
    warmup: float = 0.1
    lr_scheduler_type: str = "linear"


LAYERS = 2
VOCABULARY = 1024
MAX_LENGTH = 128
BETA = 0.2
SETTINGS = {
    "sft": Settings(1e-2, 6, 32, 0.1, "cosine"),
    "reward_model": Settings(1e-3, 4, 16),
    "policy": Settings(1e-3, 4, 16),
}
