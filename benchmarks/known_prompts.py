"""Make the file of known benchmark prompts that `marginkit check` looks up: hashes of their words, no texts.

python benchmarks/known_prompts.py FOLDER      FOLDER holds the benchmarks as JSON lines under the names below
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from marginkit.data.sources import read_groups
from marginkit.data.survey import known
from marginkit.data.survey.nearness import digest64, normalised
from marginkit.records import content_text

# name, file, how many rows it has in all (None: not counted), where the file's rows come from
BENCHMARKS = [
    ("AlpacaEval", "alpacaeval_graded.jsonl", 805, "tatsu-lab/alpaca_eval, helpful_base, koala and oasst parts"),
    ("Arena-Bench v1", "arenabench_graded.jsonl", 300, "lmarena/arena-hard-auto, data/arena-bench-v1"),
    ("LLMBar", "eval_llmbar.jsonl", 419, "princeton-nlp/LLMBar, natural and adversarial"),
    ("EvalBiasBench", "eval_biasbench.jsonl", 80, "ncsoft/offsetbias"),
    ("HHH alignment", "eval_hhh.jsonl", 221, "BIG-bench hhh_alignment"),
    ("MT-Bench and LLMEval^2", "eval_mtbench_llmeval2_human.jsonl", None, "princeton-nlp/LLMBar, Dataset/Processed"),
    ("HH harmless test", "eval_hh_harmless.jsonl", 2312, "anthropics/hh-rlhf, harmless-base test"),
    ("GSM8K test", "gsm8k_solutions_graded.jsonl", 1319, "openai/grade-school-math, example_model_solutions"),
]


def main(folder: Path) -> None:
    """Read the benchmarks and write the file into the package."""
    entries = []
    for name, file, whole, source in BENCHMARKS:
        groups, _ = read_groups(folder / file, contradiction="keep")
        digests = sorted({f"{digest64(normalised(content_text(group.prompt))):016x}" for group in groups})
        entries.append({"name": name, "source": source, "of": whole, "digests": digests})
        print(f"{name}: {len(digests)} distinct prompts of {len(groups)} rows")
    note = "blake2b-64 of the prompt's words: case folded, what is neither letter nor digit as one space"
    target = Path(known.__file__).with_name(known.FILE)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    target.write_text(f'{{"hash": {json.dumps(note)},\n"benchmarks": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
