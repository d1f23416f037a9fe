"""Bytes per token of a tokenizer beside GPT-2's and GPT-4's. More bytes per token make the same text shorter.

    python evaluation/tokenizer.py --run_dir runs/quickstart
    python evaluation/tokenizer.py --tokenizer runs/d12/tokenizer --files my_notes/ letters.txt
    python evaluation/tokenizer.py --tokenizer Qwen/Qwen3-0.6B --output_dir evals/qwen --compare runs/d12/tokenizer

Measured are the samples in evaluation/samples (prose, code, maths, Korean, science), the documents of --data and your
own --files. The table is printed, and written to eval/tokenizer.json in the tokenizer's folder for the report.

The other tokenizers are never downloaded: they come from tiktoken's cache (TIKTOKEN_CACHE_DIR), the Hub's cache or a
folder. One that is missing there is reported as absent.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.evaluate_tokenizer import main

if __name__ == "__main__":
    run_main(main)
