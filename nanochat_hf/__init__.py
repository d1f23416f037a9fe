"""Train your own ChatGPT on the Hugging Face stack."""
