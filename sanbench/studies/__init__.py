"""Trainings and measurements that belong together, as data; they run by the same calls as single commands."""
