"""The same draws by vLLM, for models and amounts that transformers would take days for. Needs the extra `vllm`.

Written against vLLM's documented offline interface (`LLM.generate` on token prompts). Seeds are given per prompt, so a
prompt's draws do not depend on its place in the file; whether they repeat bit for bit is up to vLLM's kernels.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from marginkit.config import ModelConfig
from marginkit.decoding import Drawn, Draws, prompt_seed
from marginkit.errors import BadInput

PROMPTS_PER_CHUNK = 512
"""Handed to vLLM at once, and lost at most when it is killed; it batches them itself."""


def check_installed() -> None:
    """Refuse the engine where it is not installed.

    Raises:
        BadInput: what to install.
    """
    try:
        import vllm  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        raise BadInput("--engine vllm: vLLM is not installed; pip install marginkit[vllm]") from None


def draw_with_vllm(
    held: ModelConfig,
    prompts: Sequence[Sequence[int]],
    draws: Draws,
    *,
    stop: Collection[int],
    limit: int,
) -> Iterator[tuple[list[int], list[list[Drawn]]]]:
    """Draw responses chunk by chunk.

    Args:
        held: where the policy is; a folder with a LoRA adapter is served from its base model.
        prompts: their tokens.
        draws: how.
        stop: tokens that end a response.
        limit: tokens of a prompt and its response.

    Yields:
        Indices of prompts, and n responses for each of them.

    Raises:
        BadInput: vLLM is not installed.
    """
    check_installed()
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

    path = str(held.path)
    adapter = _adapter(path)
    options: dict[str, Any] = {
        "model": path if adapter is None else adapter["base_model_name_or_path"],
        "tokenizer": str(held.tokenizer or path),
        "revision": held.revision,
        "dtype": held.dtype or "auto",
        "trust_remote_code": held.trust_remote_code,
        "max_model_len": limit,
        "seed": draws.seed,
        "generation_config": "vllm",  # not the model's own penalties and top-k: the draws are to be the policy's
    }
    request = None
    if adapter is not None:
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

        options |= {"enable_lora": True, "max_lora_rank": adapter["r"]}
        request = LoRARequest("policy", 1, path)
    engine = LLM(**options)
    for start in range(0, len(prompts), PROMPTS_PER_CHUNK):
        members = list(range(start, min(start + PROMPTS_PER_CHUNK, len(prompts))))
        settings = [
            SamplingParams(
                n=draws.n,
                temperature=draws.temperature,
                top_p=draws.top_p,
                max_tokens=draws.max_new_tokens,
                seed=prompt_seed(draws.seed, prompts[at]) >> 33,  # n seeds from here on stay below 2^31
                stop_token_ids=sorted(stop),
                detokenize=False,
            )
            for at in members
        ]
        asked = [{"prompt_token_ids": list(prompts[at])} for at in members]
        made = engine.generate(asked, settings, use_tqdm=False, lora_request=request)
        yield members, [[_drawn(one, stop) for one in answer.outputs] for answer in made]


def _drawn(one: Any, stop: Collection[int]) -> Drawn:
    ids = list(one.token_ids)
    if one.finish_reason == "stop" and ids and ids[-1] in stop:  # vLLM leaves the end token in
        ids.pop()
    return Drawn(ids, one.finish_reason == "stop")


def _adapter(path: str) -> dict[str, Any] | None:
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
