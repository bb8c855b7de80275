"""`make soak`: kills, full disks and flipped bits for half an hour, seeded, against runs and results that nothing disturbed."""
