"""The kinds of measurement, the one evaluation loop, and what reads its rows; how a network was trained is not asked here."""
