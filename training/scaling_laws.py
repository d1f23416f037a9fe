"""FLOP budgets × depths: which model is best at each budget, and how its size and number of tokens grow.

    python training/scaling_laws.py --budgets 1e18 2e18 5e18 --depths 8 10 12 14 --run_dir runs/scaling \\
        --tokenizer RUN/tokenizer
    python training/scaling_laws.py --budgets 1e11 2e11 --depths 1 2 3 --run_dir runs/tiny --tokenizer RUN/tokenizer \\
        -- --data microworld --sequence_length 128 --total_batch_size 1024

After Chinchilla (arXiv 2203.15556, approach 2). At each budget a parabola in log(parameters) is fitted to the scores;
its lowest point is the best size. Straight lines through these points in log-log space give the exponents of
parameters and tokens; the ratio of tokens to parameters is the value for `--param_data_ratio`. training/pretrain.py
trains the models; its options follow after `--`. Finished models are not trained again.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.scaling_laws import main

if __name__ == "__main__":
    run_main(main)
