"""Makes conversations about who the model is, from a file of facts that you edit.

    python training/make_identity.py --example > facts.yml
    python training/make_identity.py --facts facts.yml --output identity.jsonl
    python training/make_identity.py --facts facts.yml --output identity.jsonl --url http://localhost:8000/v1

Without --url they come from templates; with it a model behind any OpenAI-compatible server writes them.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.make_identity import main

if __name__ == "__main__":
    run_main(main)
