"""The groups in which `--help-all` shows the settings of midtraining, SFT, DPO and RL."""

OPTIMIZER = (
    "optimizer learning_rate embedding_lr unembedding_lr matrix_lr scalar_lr weight_decay init_lr_frac warmup_ratio "
    "warmdown_ratio final_lr_frac momentum_start momentum_peak momentum_warmup_steps"
)
CHECKPOINTS = "save_every save_minutes save_total_limit"
HARDWARE = "dtype compile attention gradient_checkpointing num_threads"
CHAT_GROUPS = {
    "start": "initialize_control_tokens initialize_control_head",
    "length and batch": "epochs num_iterations max_seq_len packing total_batch_size device_batch_size seed",
    "answers": "pairs_per_step prompts_per_step num_generations num_samples pairs_per_prompt max_new_tokens "
    "rollout_batch_size temperature top_k allow_code_execution",
    "objective": "reward loss_type beta",
    "measurements during the run": "val_tasks val_samples eval_every report_to log_completions",
    "LoRA": "lora_rank lora_alpha lora_targets",
    "the finished model": "default_sampling",
    "optimizer": OPTIMIZER,
    "checkpoints": CHECKPOINTS,
    "hardware": HARDWARE,
}
