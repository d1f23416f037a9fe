"""What the chat stages share: settings, packed conversation rows, and TRL's trainers with nanochat's optimizer.

`stage` holds settings and the steps every stage takes, `supervised` trains on conversations (midtraining and SFT),
`rollouts` lets the model answer and learn from the reward. Importing `supervised` or `rollouts` imports TRL.
"""
