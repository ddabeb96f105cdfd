"""What both trainers share: run folders, checkpoints, seeding, the training loop and the command line."""
