"""TRL's GRPO with its continuous-batching flag, on our model as it stands."""

from chat_toy import make_base


def test_grpos_flag_samples_what_the_model_says(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from nanochat_hf.generation import generate_with_tools, load_checkpoint

    model, tokenizer = load_checkpoint(make_base(tmp_path / "base"), device="cpu")
    questions = [[{"role": "user", "content": text}] for text in ("Hello!", "What is 12*3?")]
    options = dict(max_new_tokens=12, temperature=0, tool=None)
    expected = [rollout.token_ids for (rollout,) in generate_with_tools(model, tokenizer, questions, **options)]
    seen = []

    def reward(completion_ids, **_):
        seen.extend(completion_ids)
        return [float(index) for index in range(len(completion_ids))]

    args = GRPOConfig(
        str(tmp_path / "grpo"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        top_k=1,  # only the likeliest token can be drawn
        max_steps=1,
        learning_rate=0.0,
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"num_blocks": 16, "page_size": 32, "max_batch_tokens": 64},
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    data = Dataset.from_list([{"prompt": question} for question in questions])
    trainer = GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert sorted(seen) == sorted(expected * 2)
