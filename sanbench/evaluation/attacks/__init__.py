"""The table of attacks, the network that they query, and the checks of their budgets; they never touch the store."""
