"""What all trainers share: the loop, run folders, checkpoints, seeding, the command line."""
