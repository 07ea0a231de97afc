"""Rules on tables of scores; numpy and pyarrow only."""
