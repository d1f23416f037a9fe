"""Turns any text into shuffled shards for pretraining, with a validation shard of its own.

    # a folder of .jsonl.gz files
    python training/make_shards.py my_corpus/ shards/

    # a data set of the Hub, uploaded again as shards
    python training/make_shards.py HuggingFaceFW/fineweb-edu:sample/10BT shards/ --push_to_hub me/fineweb-edu-shards

    # then
    python training/pretrain.py --data shards/ ...

All documents are shuffled together, with memory for only one bucket: each document goes into one of --buckets
buckets at random, then each bucket is shuffled. Exact duplicates are dropped, so that no validation document is also
a training document. The same input and seed give the same shards.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.make_shards import main

if __name__ == "__main__":
    run_main(main)
